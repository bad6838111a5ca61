# SPDX-License-Identifier: Apache-2.0
"""The bench's first keys are medians of what was measured, and there only where it was."""

from __future__ import annotations

from typing import Any

from tools.bench import page
from tools.bench.summary import of

LOAD = {"pause_ms_p50": 6.0, "commit_ms_p50": 5.0, "dirty_pages": 100, "bytes_per_epoch": 8192}


def rounds(*tps: float, mode: str = "on-demand", **other: Any) -> list[dict[str, Any]]:
    return [
        {
            "unprotected": {"tpcb_c1": {"tps": 100.0}},
            mode: {"idle": {"pause_ms_p50": 2.0, "worker_cpu_ms": 1.5}, "tpcb_c1": {**LOAD, "tps": one, **other}},
        }
        for one in tps
    ]


def test_ratios_are_of_medians() -> None:
    assert of(rounds(10, 90, 20)) == {
        "tpcb_c1_ratio": 0.2,
        "pause_ms_idle": 2.0,
        "worker_cpu_ms_idle": 1.5,
        "commit_ms_p50": 5.0,
        "wire_over_dirty": 0.02,
    }


def test_another_mode_has_its_name() -> None:
    assert of(rounds(10, mode="fixed")) == {"tpcb_c1_fixed": 0.1}


def test_bulk_and_the_floor_are_ratios_of_one_round() -> None:
    (one,) = rounds(10, mode="fixed")
    one["unprotected"] |= {"idle": {"floor_ms": 1.6}, "bulk": {"out": 200.0, "in": 500.0}}
    one["fixed"]["bulk"] = {"out": 50.0, "in": 25.0}
    told = of([one])
    assert told == {"tpcb_c1_fixed": 0.1, "bulk_out_fixed": 0.25, "bulk_in_fixed": 0.05, "pause_over_floor": 1.25}


def test_the_page_shows_each_load_and_each_mode() -> None:
    (one,) = rounds(10)
    for mode in one.values():
        mode |= {"bulk": {"out": 1.0, "in": 2.0}, "idle": {"stages_ms": {"find": 0.5}}}
    shown = page.of({"tpcb_c1_ratio": 0.1}, [one, one])
    assert "tpcb_c1_ratio" in shown and "unprotected" in shown and ">find<" in shown and "Bulk from the VM" in shown


def test_a_load_that_wrote_nothing_has_no_share() -> None:
    assert "wire_over_dirty" not in of(rounds(10, dirty_pages=0))
