# SPDX-License-Identifier: Apache-2.0
"""The bench's first keys are medians of what was measured, and there only where it was."""

from __future__ import annotations

from typing import Any

from tools.bench import page
from tools.bench.summary import KEYS, missing, of
from tools.bench.turns import QUICK

LOAD = {"pause_ms_p50": 6.0, "commit_ms_p50": 5.0, "dirty_pages": 100, "bytes_per_epoch": 8192}
LATENCY = {"latency_ms_p50": 7.0, "latency_ms_p99": 71.5}
# The names by which reports are compared with each other, whatever measured them.
PROMISED = """pause_over_floor pause_ms_idle commit_ms_p50 worker_cpu_ms_idle encode_over_memcpy encode_over_numpy
wire_over_dirty drt_reference_share tpcb_c1_ratio tpcb_c8_ratio tpcb_c32_ratio guest_progress_ratio bulk_out_ratio
bulk_in_ratio clock_loss_ppm outage_ms_median""".split()


def rounds(*tps: float, mode: str = "on-demand", **other: Any) -> list[dict[str, Any]]:
    return [
        {
            "unprotected": {"tpcb_c1": {"tps": 100.0, **LATENCY}},
            mode: {
                "idle": {"pause_ms_p50": 2.0, "worker_cpu_ms": 1.5},
                "tpcb_c1": {**LOAD, **LATENCY, "tps": one, **other},
            },
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


def test_the_page_shows_what_was_measured_elsewhere() -> None:
    (one,) = rounds(10)
    for mode in one.values():
        mode |= {"bulk": {"out": 1.0, "in": 2.0}, "idle": {}}
    turns = {"remote_apply": {"tpcb_c1": [{"tps": 5.0}]}}
    found = {
        "scan": {"turns": {"fixed-drt": [{"mb_s": 12.5}]}},
        "syncrep": {"turns": turns, "failover": {"promote_ms": 777.0}},
    }
    shown = page.of(found, [one])
    assert ">fixed-drt<" in shown and ">12.5<" in shown and "remote_apply" in shown and "<td>777</td>" in shown


def test_a_load_that_wrote_nothing_has_no_share() -> None:
    assert "wire_over_dirty" not in of(rounds(10, dirty_pages=0))


def test_the_report_has_the_promised_keys_and_tells_which_it_lacks() -> None:
    assert sorted(KEYS) == sorted(PROMISED)
    whole: dict[str, Any] = dict.fromkeys(PROMISED, 1.0)
    assert not missing(whole)
    assert missing({**whole, "clock_loss_ppm": None}) == ["clock_loss_ppm"]
    del whole["tpcb_c8_ratio"]
    assert missing(whole) == ["tpcb_c8_ratio"]


def test_clients_in_the_vm_are_a_ratio_of_their_own() -> None:
    (one,) = rounds(10)
    one["unprotected"]["inside"], one["on-demand"]["inside"] = {"tpcb_c1": 50.0}, {"tpcb_c1": 40.0}
    assert of([one])["tpcb_c1_inside_ratio"] == 0.8


def test_what_a_quick_bench_measures_is_enough_for_its_keys() -> None:
    one: dict[str, Any] = {"tps": 9.0, **LATENCY}
    loads = {f"{name}_c{count}": one for name in ("tpcb", "select") for count in (1, 8, 32)}
    shown = {**loads, "idle": {**LOAD, "worker_cpu_ms": 1.5, "floor_ms": 2.0}, "bulk": {"out": 1.0, "in": 1.0}}
    shown |= {key: {**load, **LOAD, "clock_lost_ppm": 3.0} for key, load in loads.items()}
    elsewhere = {"encode_over_memcpy", "encode_over_numpy", "drt_reference_share", "guest_progress_ratio",
                 "outage_ms_median"}  # fmt: skip
    assert set(missing(of([dict.fromkeys(QUICK, shown)]))) == elsewhere
