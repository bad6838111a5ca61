# SPDX-License-Identifier: Apache-2.0
"""No metric lies: each state is told by the real server code of the control sockets, and scraped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from remusdb.control.status import StandbyStatus, VmStatus
from remusdb.reasons import Code, Reason
from tests.unit.console_rig import GOOD, KEPT, Browser, Site, console

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
FIGURES = (
    "commit_latency",
    "epoch_pause",
    "pause_ratio",
    "epoch_interval",
    "epoch_dirty_pages",
    "sent_bytes",
    "clock_lag",
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def browser(site: Site) -> Iterator[Browser]:
    with console(site.run_dir) as made:
        yield made


def scrape(browser: Browser) -> Series:
    status, text = browser.ask("/metrics")
    assert status == 200
    found: Series = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line).groups()  # type: ignore[union-attr]
            found[name, frozenset(re.findall(r'(\w+)="([^"]*)"', labels or ""))] = float(value)
    return found


def values(series: Series, name: str, **labels: str) -> list[float]:
    return [value for (key, has), value in series.items() if key == name and labels.items() <= dict(has).items()]


def test_a_protected_vm_and_a_replica(browser: Browser) -> None:
    told = scrape(browser)
    assert values(told, "remusdb_up") == [1, 1]
    assert values(told, "remusdb_vm_protected") == [1]  # the replica is another host's to tell of
    assert values(told, "remusdb_vm_protected", vm="db1", peer="beta") == [1]
    assert values(told, "remusdb_vm_commit_latency_seconds", quantile="0.5") == [pytest.approx(0.031)]
    assert values(told, "remusdb_vm_epoch_pause_seconds", quantile="0.99") == [pytest.approx(0.0059)]
    assert values(told, "remusdb_vm_epoch_interval_seconds") == [pytest.approx(1 / 19.4)]
    assert values(told, "remusdb_vm_committed_age_seconds") == [pytest.approx(0.0612)]
    assert values(told, "remusdb_vm_held_bytes") == [4200]
    assert values(told, "remusdb_vm_dropped_frames_total") == [7]
    assert values(told, "remusdb_vm_standby_proven") == [1]
    assert values(told, "remusdb_replica_primary_silence_seconds", vm="reporting") == [pytest.approx(0.04)]
    assert browser.ask("/healthz") == (200, '{"host":true,"agent":true}')
    assert browser.ask("/readyz")[0] == 200


@pytest.mark.parametrize(
    ("status", "protected", "figures"),
    [
        (replace(GOOD, state="held", why=Reason.of(Code.FOLLOWING, peer="beta")), [0], False),
        (replace(GOOD, state="solo"), [0], False),
        (replace(GOOD, state="seeding", committed_age_ms=None), [0], False),
        (replace(GOOD, state="failed"), [0], False),
        (replace(GOOD, state="fenced"), [], False),  # another host's to tell of
        (replace(GOOD, why=Reason.of(Code.WORKER_UNHEARD)), [0], False),  # what is told of it is old
        (replace(GOOD, committed_age_ms=60_000.0), [0], True),  # its backup is far behind, whatever the state says
        (replace(GOOD, unproven="QEMU refused the state"), [1], True),
        (VmStatus(vm="db1", running=True, wanted=True), [0], False),
        (VmStatus(vm="db1", running=True), [0], False),
        (VmStatus(vm="db1", running=False), [], False),
    ],
    ids=["held", "solo", "seeding", "failed", "fenced", "unheard", "behind", "unproven", "lost", "bare", "off"],
)  # fmt: skip
def test_each_state(site: Site, browser: Browser, status: VmStatus, protected: list[int], figures: bool) -> None:
    site.own, site.kept = [status], []
    told = scrape(browser)
    assert values(told, "remusdb_vm_protected", vm="db1") == protected
    assert values(told, "remusdb_vm_state", vm="db1", state=status.state) == [1]
    assert sum(values(told, "remusdb_vm_state", vm="db1")) == 1
    shown = {name for name in FIGURES if any(key.startswith(f"remusdb_vm_{name}") for key, _ in told)}
    assert shown == (set(FIGURES) if figures else set())
    assert bool(values(told, "remusdb_vm_held_bytes")) == (status.state == "held" or figures)
    assert browser.ask("/readyz")[0] == (503 if protected == [0] else 200)
    if status.unproven:
        assert values(told, "remusdb_vm_standby_proven") == [0]


@pytest.mark.parametrize(
    ("status", "protected"),
    [
        (replace(KEPT, state="promoted", role="promoted"), [0]),  # it runs here, alone
        (replace(KEPT, state="deciding"), []),
        (replace(KEPT, state="deciding", why=Reason.of(Code.ARBITER_AWAITED)), [0]),  # perhaps it runs nowhere
        (replace(KEPT, state="failed"), [0]),
        (replace(KEPT, state="empty"), []),
    ],
)  # fmt: skip
def test_each_state_of_a_replica(site: Site, browser: Browser, status: StandbyStatus, protected: list[int]) -> None:
    site.own, site.kept = [], [status]
    if status.state == "promoted":
        site.own = [VmStatus(vm=status.vm)]
    told = scrape(browser)
    assert values(told, "remusdb_vm_protected", vm="reporting") == protected
    assert values(told, "remusdb_vm_state", vm="reporting", state=status.state) == [1]


def test_a_daemon_that_is_down_leaves_no_old_value(site: Site, browser: Browser) -> None:
    assert values(scrape(browser), "remusdb_vm_protected")
    site.stop("host")
    told = scrape(browser)
    assert values(told, "remusdb_up", daemon="host") == [0] and values(told, "remusdb_up", daemon="agent") == [1]
    assert not [key for key, labels in told if ("vm", "db1") in labels]
    assert browser.ask("/healthz")[0] == browser.ask("/readyz")[0] == 503
    site.stop("agent")
    assert not [key for key, _ in scrape(browser) if key.startswith(("remusdb_vm", "remusdb_replica"))]


def test_names_and_types_are_as_prometheus_wants_them(browser: Browser) -> None:
    _, text = browser.ask("/metrics")
    types = dict(re.findall(r"# TYPE (\w+) (\w+)", text))
    helps = dict(re.findall(r"# HELP (\w+) (\S.*)", text))
    assert types.keys() == helps.keys() and set(types.values()) <= {"gauge", "counter"}
    for name, kind in types.items():
        assert name.startswith("remusdb_") and (kind == "counter") == name.endswith("_total")
        assert not re.search("_(ms|kib|mib|percent|ns)(_|$)", name)
