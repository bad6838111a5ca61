# SPDX-License-Identifier: Apache-2.0
"""How long clients wait when the host is killed: as `make demo`, some times."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from tools.lab.image import DbImage
from tools.show import say
from tools.trial import Kill, Trial

FIRST_SEED = 1


def report(image: DbImage, folder: Path, runs: int) -> dict[str, Any]:
    """`outage_ms_median`, and each. Raises RuntimeError when a client lost anything: then there is nothing to time."""
    found = []
    for seed in range(FIRST_SEED, FIRST_SEED + runs):
        say(f"  [dim]host killed, run {seed} of {runs}[/dim]")
        outcome = Trial(image, seed, Kill.HOST, folder / f"kill-{seed}").run()
        if outcome.complaints:
            raise RuntimeError("; ".join(outcome.complaints))
        found.append(outcome.figures["outage_ms"])
    return {"outage_ms_median": statistics.median(found), "outage_ms": found}
