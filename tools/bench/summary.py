# SPDX-License-Identifier: Apache-2.0
"""The report's first keys, from what was measured in each round.

tpcb_c8_ratio         throughput of MODE over that of the unprotected VM, medians of all rounds; so for each load
tpcb_c8_fixed         the same of another mode, by its name
pause_ms_idle         how long an idle VM stands still for an epoch, ms
worker_cpu_ms_idle    the worker's CPU over such an epoch, ms, and what it does by the clock: more, where epochs are few
commit_ms_p50         from the end of a cut to its frames on the wire, ms, under the load with most clients
wire_over_dirty       bytes that were sent over bytes of the pages that were written, under TPC-B
"""

from __future__ import annotations

import statistics
from typing import Any

from remusdb.core.pagework import PAGE_BYTES

MODE = "on-demand"  # what the keys without a mode's name are of, where it was measured
UNPROTECTED = "unprotected"

Rounds = list[dict[str, Any]]


def of(rounds: Rounds) -> dict[str, Any]:
    """The keys above, as far as these rounds have what they need."""
    modes = [mode for mode in rounds[0] if mode != UNPROTECTED]
    found: dict[str, Any] = {}
    for mode in modes:
        loads = [key for key in rounds[0][mode] if key != "idle"]
        for key in loads:
            name = "ratio" if mode == MODE else mode
            plain = _median(rounds, UNPROTECTED, key)
            found[f"{key}_{name}"] = round(_median(rounds, mode, key) / plain, 3)
    if MODE in modes:
        load = [key for key in rounds[0][MODE] if key.startswith("tpcb")][-1]
        for name, key, what in (
            ("pause_ms_idle", "idle", "pause_ms_p50"),
            ("worker_cpu_ms_idle", "idle", "worker_cpu_ms"),
            ("commit_ms_p50", load, "commit_ms_p50"),
        ):
            found[name] = statistics.median([one[MODE][key][what] for one in rounds])
        shares = [_wire_over_dirty(one[MODE][load]) for one in rounds if one[MODE][load]["dirty_pages"]]
        if shares:
            found["wire_over_dirty"] = round(statistics.median(shares), 4)
    return found


def _median(rounds: Rounds, mode: str, key: str) -> float:
    return statistics.median([float(one[mode][key]["tps"]) for one in rounds])


def _wire_over_dirty(one: dict[str, Any]) -> float:
    return float(one["bytes_per_epoch"] / (one["dirty_pages"] * PAGE_BYTES))
