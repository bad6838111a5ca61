# SPDX-License-Identifier: Apache-2.0
"""docs/monitoring: its rules and dashboard name what the console tells. promtool runs the rules in tests/host."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from remusdb.console.metrics import Collector
from remusdb.control.both import Told
from remusdb.control.status import StandbyStatus, VmStatus
from remusdb.reasons import Code, Reason

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "monitoring"
RULES = (FOLDER / "remusdb.rules.yml").read_text()
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana-dashboard.json").read_text())
SELECTOR = re.compile(r"\b(remusdb_\w+)(?:\{([^}]*)\})?")
OF_THE_SCRAPE = {"instance", "job"}  # Prometheus adds them


def queries() -> list[str]:
    """Every expression of the dashboard."""
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def told() -> dict[str, set[str]]:
    """Each series that the console tells in some state: its name, and the labels that it has."""
    own = VmStatus(
        vm="db1", state="protected", peer="b", term=2, epoch=9, committed=8, committed_age_ms=9.0, epochs_per_s=40.0,
        commit_ms_p50=7.0, commit_ms_p99=11.0, pause_ms_p50=3.0, pause_ms_p99=5.0, pause_share=0.1,
        stages_ms={"stop": 0.2}, bytes_per_epoch=9e4, bytes_per_s=4e6, dirty_pages=40.0, clock_lag_ms=1.0,
        proven_at_ns=10**18, troubles=["arbiter"],
    )  # fmt: skip
    solo = VmStatus(vm="db2", state="solo", peer="b", why=Reason(Code.PEER_LOST, {}))
    kept = StandbyStatus(
        vm="db3", state="ready", peer="b", term=2, committed=8, applied=8, primary_silence_ms=30, silence_limit_ms=900
    )
    found: dict[str, set[str]] = {}
    for family in Collector(lambda: Told(own=[own, solo], kept=[kept], asked=("host", "agent"))).collect():
        for one in family.samples:
            found.setdefault(one.name, set()).update(one.labels)
    return found


@pytest.mark.parametrize("text", [RULES, *queries()])
def test_every_series_and_label_that_is_named_is_one_that_the_console_tells(text: str) -> None:
    known = told()
    named = SELECTOR.findall(text)
    assert named
    for series, chosen in named:
        assert series in known, f"{series} is told in no state"
        labels = set(re.findall(r"(\w+)=", chosen))
        assert labels <= known[series] | OF_THE_SCRAPE, f"{series} has no such label"


def test_a_legend_names_labels_of_its_series() -> None:
    known = told()
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            ((series, _chosen),) = SELECTOR.findall(target["expr"])
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert labels <= known[series] | OF_THE_SCRAPE, panel["title"]


def test_every_panel_has_a_query_of_its_own_and_no_other_lies_on_it() -> None:
    squares = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in squares, panel["title"]
                squares.add((x, y))
        assert x < 24
    assert len(set(queries())) == len(queries())


def test_every_alert_says_who_must_act_and_what_to_do_and_has_a_test() -> None:
    tested = set(re.findall(r"alertname: (\w+)", (FOLDER / "remusdb.rules.test.yml").read_text()))
    alerts = RULES.split("- alert: ")[1:]
    assert tested == {one.split()[0] for one in alerts}
    for one in alerts:
        assert re.search(r"severity: (page|ticket|info)\}", one)
        assert "summary: " in one and "action: " in one


def test_a_runbook_that_an_alert_names_is_there() -> None:
    named = set(re.findall(r"docs/(\S+\.md)", RULES)) | {
        f"runbooks/{one}" for one in re.findall(r"and ([\w-]+\.md)", RULES)
    }
    assert named and [one for one in named if not (FOLDER.parent / one).exists()] == []
