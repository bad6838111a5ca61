# SPDX-License-Identifier: Apache-2.0
"""The report's first keys, from what was measured in each round.

tpcb_c8_ratio         throughput of MODE over that of the unprotected VM, medians of all rounds; so for each load
tpcb_c8_fixed         the same of another mode, by its name
tpcb_c8_inside_ratio  of clients in the VM: what stops and work cost where nobody waits for output
bulk_out_ratio        MB/s from the VM to a client over those of the unprotected VM; bulk_in_ratio: the other way
pause_over_floor      how long an idle VM stands still for an epoch by the clock, over what QEMU needs for its state
pause_ms_idle         how long an idle VM stands still for an epoch, ms
worker_cpu_ms_idle    the worker's CPU over such an epoch, ms, and what it does by the clock: more, where epochs are few
commit_ms_p50         from the end of a cut to its frames on the wire, ms, under the load with most clients
encode_over_memcpy    pages to payloads a second over a plain copy of them; encode_over_numpy: over the same in numpy
guest_progress_ratio  of a bare guest that writes 1,000 pages a round, protected over unprotected
outage_ms_median      how long clients wait when the host is killed
clock_loss_ppm        how much slower the guest's clock goes, in millionths, at the end of that load
drt_reference_share   of the pages of a guest that reads its disk, how many went as references to the backup's disk
wire_over_dirty       bytes that were sent over bytes of the pages that were written, under TPC-B
"""

from __future__ import annotations

import statistics
from typing import Any

from remusdb.core.pagework import PAGE_BYTES

MODE = "on-demand"  # what the keys without a mode's name are of, where it was measured
BY_CLOCK = "fixed"
UNPROTECTED = "unprotected"

KEYS = ("pause_over_floor", "pause_ms_idle", "commit_ms_p50", "worker_cpu_ms_idle", "encode_over_memcpy",
        "encode_over_numpy", "wire_over_dirty", "drt_reference_share", "tpcb_c1_ratio", "tpcb_c8_ratio",
        "tpcb_c32_ratio", "guest_progress_ratio", "bulk_out_ratio", "bulk_in_ratio", "clock_loss_ppm",
        "outage_ms_median")  # fmt: skip
NOT_LOADS = ("idle", "bulk", "inside")  # of what was measured in a mode

Rounds = list[dict[str, Any]]


def of(rounds: Rounds) -> dict[str, Any]:
    """The keys above, as far as these rounds have what they need."""
    modes = [mode for mode in rounds[0] if mode != UNPROTECTED]
    found: dict[str, Any] = {}
    for mode in modes:
        loads = [key for key in rounds[0][mode] if key not in NOT_LOADS]
        name = "ratio" if mode == MODE else mode
        for key in loads:
            found[f"{key}_{name}"] = _ratio(rounds, mode, key, "tps")
        for way in rounds[0][mode].get("bulk", ()):
            found[f"bulk_{way}_{name}"] = _ratio(rounds, mode, "bulk", way)
        for key in rounds[0][mode].get("inside", ()):
            found[f"{key}_inside_{name}"] = _ratio(rounds, mode, "inside", key)
    if BY_CLOCK in modes and "idle" in rounds[0][UNPROTECTED]:
        pauses = [one[BY_CLOCK]["idle"]["pause_ms_p50"] / one[UNPROTECTED]["idle"]["floor_ms"] for one in rounds]
        found["pause_over_floor"] = round(statistics.median(pauses), 3)
    if MODE in modes:
        load = [key for key in rounds[0][MODE] if key.startswith("tpcb")][-1]
        for name, key, what in (
            ("pause_ms_idle", "idle", "pause_ms_p50"),
            ("worker_cpu_ms_idle", "idle", "worker_cpu_ms"),
            ("commit_ms_p50", load, "commit_ms_p50"),
            ("clock_loss_ppm", load, "clock_lost_ppm"),
        ):
            values = [one[MODE][key].get(what) for one in rounds]
            if None not in values:
                found[name] = statistics.median(values)
        shares = [_wire_over_dirty(one[MODE][load]) for one in rounds if one[MODE][load]["dirty_pages"]]
        if shares:
            found["wire_over_dirty"] = round(statistics.median(shares), 4)
    return found


def missing(found: dict[str, Any]) -> list[str]:
    """Of KEYS those that a report lacks."""
    return [key for key in KEYS if found.get(key) is None]


def _ratio(rounds: Rounds, mode: str, key: str, what: str) -> float:
    """Of the medians of a mode and of the unprotected VM."""
    mine, plain = (statistics.median([float(one[each][key][what]) for one in rounds]) for each in (mode, UNPROTECTED))
    return round(mine / plain, 3)


def _wire_over_dirty(one: dict[str, Any]) -> float:
    return float(one["bytes_per_epoch"] / (one["dirty_pages"] * PAGE_BYTES))
