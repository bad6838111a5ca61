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
