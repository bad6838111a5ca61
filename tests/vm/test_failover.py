# SPDX-License-Identifier: Apache-2.0
"""The promise, on a database VM under load: whatever kills its primary, no client notices more than a pause."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.dbms import MARIADB, POSTGRESQL, Dbms
from tools.lab import image
from tools.trial import Kill, Trial

LOGS = Path(__file__).resolve().parents[2] / "build" / "test" / "failover"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("dbms", "kill"),
    [*((POSTGRESQL, kill) for kill in Kill), (MARIADB, Kill.HOST)],
    ids=lambda of: of.key if isinstance(of, Dbms) else of.value,
)
def test_nothing_is_lost_and_no_connection_is_reset(dbms: Dbms, kill: Kill) -> None:
    """Every acknowledged row is there once, the balance adds up, no client reconnected, no file is damaged."""
    outcome = Trial(image.ensure(dbms=dbms), seed=7, kill=kill, folder=LOGS / f"{dbms.key}-{kill.value}").run()
    assert outcome.complaints == []
    assert 0 < outcome.figures["acked_ipv6"] < outcome.figures["acked"]
    assert (outcome.figures["lost"], outcome.figures["duplicated"], outcome.figures["reconnects"]) == (0, 0, 0)


@pytest.mark.timeout(600)
def test_with_commit_protection_nothing_is_lost_and_only_open_transactions_are_reset() -> None:
    """What was inside a transaction may be reset, and then is not there; all else is as without it."""
    folder = LOGS / "commit"
    outcome = Trial(image.ensure(dbms=POSTGRESQL), seed=7, kill=Kill.HOST, folder=folder, release="commit").run()
    assert outcome.complaints == []
    assert outcome.figures["early_frames"] > 0
    assert (outcome.figures["lost"], outcome.figures["duplicated"]) == (0, 0)
    assert outcome.figures["reconnects"] == outcome.figures["reset_inside"]
