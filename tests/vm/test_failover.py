# SPDX-License-Identifier: Apache-2.0
"""The promise, on a PostgreSQL VM under load: whatever kills its primary, no client notices more than a pause."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.lab import image
from tools.trial import Kill, Trial

LOGS = Path(__file__).resolve().parents[2] / "build" / "test" / "failover"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kill", list(Kill))
def test_nothing_is_lost_and_no_connection_is_reset(kill: Kill) -> None:
    """Every acknowledged row is there once, the balance adds up, no client reconnected, pg_amcheck is clean."""
    outcome = Trial(image.ensure(), seed=7, kill=kill, folder=LOGS / kill.value).run()
    assert outcome.complaints == []
    assert outcome.figures["acked"] > 0
    assert (outcome.figures["lost"], outcome.figures["duplicated"], outcome.figures["reconnects"]) == (0, 0, 0)
