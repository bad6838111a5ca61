# SPDX-License-Identifier: Apache-2.0
"""The bench's first keys are medians of what was measured, and there only where it was."""

from __future__ import annotations

from typing import Any

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


def test_a_load_that_wrote_nothing_has_no_share() -> None:
    assert "wire_over_dirty" not in of(rounds(10, dirty_pages=0))
