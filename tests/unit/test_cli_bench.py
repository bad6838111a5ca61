# SPDX-License-Identifier: Apache-2.0
"""`remusdb bench` says what a protection costs, from what status says of it, and touches nothing."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from remusdb.cli.main import cli
from remusdb.control import ControlServer, ProgressFn
from remusdb.control.api import HostStatus, HostVms
from remusdb.control.status import VmStatus
from remusdb.measured import measured
from remusdb.processes import called

bench_module = importlib.import_module("remusdb.cli.bench")  # main.py has the verb by this name
LOOK = VmStatus(
    vm="db1", state="protected", term=3, committed=100, epoch_mode="fixed", pause_ms_p50=3.0, pause_ms_p99=9.0,
    pause_share=0.06, commit_ms_p50=5.0, commit_ms_p99=20.0, dirty_pages=500.0, bytes_per_epoch=40_960.0,
    held_bytes=10, dropped_frames=2, stages_ms={"find": 0.5},
)  # fmt: skip
LATER = replace(LOOK, committed=140, pause_ms_p50=5.0, pause_ms_p99=30.0, held_bytes=4096, dropped_frames=5)
LAST = replace(LOOK, committed=180, pause_ms_p50=4.0, dropped_frames=5)


class Daemon:
    """Says one status after the other, and the last again and again."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.looks: list[VmStatus] = []
        self.asked: list[HostStatus] = []
        self.server = ControlServer(run_dir / "host.sock", {HostStatus: self._status})

    def _status(self, asked: HostStatus, _progress: ProgressFn) -> HostVms:
        self.asked.append(asked)
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return HostVms(vms=[look])

    def run(self, *words: str, exit_code: int = 0) -> Result:
        """The verb, said to this daemon."""
        result = CliRunner().invoke(cli, ["--run-dir", str(self.run_dir), "bench", "db1", *words])
        assert result.exit_code == exit_code, result.output
        return result


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    monkeypatch.setattr(bench_module, "_wait", lambda _seconds: None)
    made = Daemon(tmp_path)
    made.server.start()
    yield made
    made.server.close()


def test_figures_are_of_the_time_that_was_measured() -> None:
    found = measured([LOOK, LATER, LAST], 2.0, {"worker": 150.0})
    assert (found.epochs_per_s, found.pause_ms_p50, found.pause_ms_p99) == (40.0, 4.0, 30.0)
    assert (found.held_bytes, found.dropped_frames, found.wire_over_dirty) == (4096, 3, 0.02)
    assert found.states == {"protected": 3} and found.cpu_ms_per_s == {"worker": 150.0}


def test_what_status_remembers_of_an_earlier_time_does_not_count_while_the_vm_is_not_protected() -> None:
    held = replace(LATER, state="held", pause_ms_p50=99.0, pause_ms_p99=99.0)
    found = measured([LOOK, held, LAST], 2.0, {})
    assert (found.pause_ms_p50, found.pause_ms_p99) == (3.5, 9.0)
    assert found.states == {"protected": 2, "held": 1} and found.held_bytes == 4096


def test_epochs_of_another_session_are_not_taken_for_its_own() -> None:
    """A worker that was started again counts from 0."""
    assert measured([LOOK, replace(LAST, term=4, committed=7)], 2.0, {}).epochs_per_s is None


def test_nothing_measured_is_null() -> None:
    bare = VmStatus(vm="db1", state="protected")
    found = measured([bare, bare], 2.0, {})
    assert found.pause_ms_p50 is None and found.wire_over_dirty is None and found.epochs_per_s == 0


def test_bench_asks_for_status_alone_and_shows_a_table(daemon: Daemon) -> None:
    daemon.looks = [LOOK, LATER, LAST]
    out = daemon.run("--seconds", "2")
    assert daemon.asked == [HostStatus(vm="db1")] * 3
    for words in ("epochs fixed", "4 / 30 ms", "6.0 % of the time", "500 pages", "2.0 % of these pages", "find 0.5"):
        assert words in out.stdout
    assert "not protected" not in out.stdout and "look at db1: 2 of 2 s" in out.stderr
    assert json.loads(daemon.run("--seconds", "2", "--json").stdout)["vm"] == "db1"


def test_bench_tells_that_protection_was_lost_meanwhile(daemon: Daemon) -> None:
    daemon.looks = [LOOK, replace(LATER, state="held"), LAST]
    assert (
        "not protected all the time; so often it was seen in another state: held 1."
        in daemon.run("--seconds", "2").stdout
    )


def test_a_vm_that_is_not_protected_cannot_be_measured(daemon: Daemon) -> None:
    daemon.looks = [replace(LOOK, state="seeding")]
    said = daemon.run(exit_code=3).stderr
    assert "not protected now (seeding)" in said and "hint: say this where it is protected" in said


@pytest.mark.parametrize(
    ("command", "vm", "name"),
    [
        (["python", "-P", "-m", "remusdb.worker", "9", "/r/worker-pg.sock"], "pg", "worker"),
        (["python", "-P", "-m", "remusdb.worker", "9", "/r/worker-other.sock"], "pg", None),
        (["qemu-system-x86_64", "-name", "guest=pg,debug-threads=on", "-S"], "pg", "qemu"),
        (["qemu-system-x86_64", "-name", "guest=pg", "-S"], "pg", "qemu"),
        (["qemu-system-x86_64", "-name", "guest=pg2,debug-threads=on"], "pg", None),
        (["qemu-system-x86_64", "-name", "guest=pg,,2,debug-threads=on"], "pg", None),
        (["qemu-system-x86_64", "-name", "guest=pg,,2,debug-threads=on"], "pg,2", "qemu"),
        (["qemu-system-x86_64", "-name"], "pg", None),
        ([], "pg", None),
    ],
)
def test_a_process_counts_for_its_own_vm_alone(command: list[str], vm: str, name: str | None) -> None:
    assert called(command, vm, "/r/worker-pg.sock") == name
