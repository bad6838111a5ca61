# SPDX-License-Identifier: Apache-2.0
"""Moving every VM off a host: which ones, one failure beside successes, and only when the host goes down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner

from remusdb.cli.main import cli
from remusdb.config import Host, HostConfig, Protection
from remusdb.control import ControlServer, ProgressFn
from remusdb.control.api import Evacuate, Evacuated, Moved, Stayed, Switched
from remusdb.control.codec import plain
from remusdb.control.status import State, VmStatus
from remusdb.errors import NotProtected, RefusedForSafety, UsageError, VmError
from remusdb.host.evacuation import evacuate
from remusdb.host.shutdown import host_is_stopping, is_marked
from remusdb.host.supervisor import Supervisor
from tests.unit.host_daemon_rig import Running


class FakeSupervisor:
    """VMs by name: their state, and how their switchover goes."""

    def __init__(
        self, states: dict[str, State], errors: dict[str, Exception], nothing: tuple[str, ...] = (), off: str = ""
    ) -> None:
        self._states, self._errors = states, errors
        self._off: str | None = off
        self.inspection = self
        vms = {vm: Protection(on_host_shutdown="nothing") for vm in nothing}
        self.config = HostConfig(host=Host(name="alpha"), vms=vms)

    def statuses(self) -> dict[str, VmStatus]:
        return {vm: VmStatus(vm=vm, state=state) for vm, state in self._states.items()}

    def lose_libvirt(self) -> None:
        self._off = None

    def vms(self) -> dict[str, bool]:
        if self._off is None:
            raise VmError("no socket")
        return {vm: vm != self._off for vm in self._states}

    def switchover(self, vm: str, _progress: ProgressFn) -> Switched:
        if vm in self._errors:
            raise self._errors[vm]
        return Switched(to="beta", term=4, took_ms=80.0)


def run(supervisor: FakeSupervisor, *, host_stops: bool) -> Evacuated:
    return evacuate(cast(Supervisor, supervisor), lambda _step: None, host_stops=host_stops)


def test_one_that_cannot_be_moved_keeps_no_other_here() -> None:
    states: dict[str, State] = {
        "db1": "protected",
        "db2": "protected",
        "old": "fenced",
        "web": "unprotected",
        "lone": "solo",
    }
    errors: dict[str, Exception] = {
        "db1": RefusedForSafety("beta does not answer"),
        "lone": NotProtected("VM lone is not protected: there is nowhere to move it to"),
    }
    found = run(FakeSupervisor(states, errors), host_stops=False)
    assert found.moved == [Moved(vm="db2", to="beta", term=4, took_ms=80.0)]
    assert found.stayed == [
        Stayed(vm="db1", reason="beta does not answer"),
        Stayed(vm="lone", reason="VM lone is not protected: there is nowhere to move it to"),
    ]


def test_what_does_not_run_has_nothing_to_be_moved() -> None:
    """And without libvirt's word, what is protected surely runs."""
    supervisor = FakeSupervisor({"db1": "protected", "died": "failed"}, {}, off="died")
    for _ in range(2):
        found = run(supervisor, host_stops=False)
        assert [one.vm for one in found.moved] == ["db1"] and found.stayed == []
        supervisor.lose_libvirt()


@pytest.mark.parametrize(("host_stops", "moved"), [(True, ["db2"]), (False, ["db1", "db2"])])
def test_a_vm_may_be_left_to_go_down_with_its_host(host_stops: bool, moved: list[str]) -> None:
    """`on_host_shutdown` is about the host's end; an operator who asks has them all moved."""
    found = run(FakeSupervisor({"db1": "protected", "db2": "protected"}, {}, nothing=("db1",)), host_stops=host_stops)
    assert sorted(one.vm for one in found.moved) == moved
    assert [one.exempt for one in found.stayed] == [True] * (2 - len(moved))


def test_the_daemon_moves_nothing_while_the_host_stays_up(config: HostConfig) -> None:
    with Running(config, host_is_stopping=lambda: False) as running:
        running.protect("db1")
        assert running.ask(Evacuate(if_host_stops=True)).note == "this host is not shutting down"
        assert running.status("db1").state == "protected"
        assert not is_marked(config.host.run_dir)
        with pytest.raises(UsageError):
            running.say(op="evacuate", if_host_stops="yes")


def test_the_hosts_end_is_marked_until_a_daemon_starts_again(config: HostConfig) -> None:
    with Running(config, host_is_stopping=lambda: True) as running:
        running.protect("db1")
        moved = running.ask(Evacuate(if_host_stops=True))
        assert moved == Evacuated(moved=[Moved(vm="db1", to="beta", term=8, took_ms=80.0)])
        assert is_marked(config.host.run_dir)
    with Running(config):
        assert not is_marked(config.host.run_dir)


@pytest.mark.parametrize(
    ("command", "stopping"),
    [
        (("echo", "stopping"), True),
        (("sh", "-c", "echo stopping; exit 1"), True),  # as systemctl does: only `running` is 0
        (("echo", "running"), False),
        (("/nonexistent/systemctl",), False),
    ],
)
def test_the_hosts_end_is_asked_of_systemd(command: tuple[str, ...], stopping: bool) -> None:
    assert host_is_stopping(command) is stopping


@pytest.mark.parametrize(
    ("stayed", "code"),
    [
        ([], 0),
        ([Stayed(vm="db2", reason="x", exempt=True)], 0),
        ([Stayed(vm="db2", reason="x")], 1),
    ],
)
def test_the_command_says_what_moved_and_what_did_not(tmp_path: Path, stayed: list[Stayed], code: int) -> None:
    answer = Evacuated(moved=[Moved(vm="db1", to="beta", term=4, took_ms=80.0)], stayed=stayed)
    server = ControlServer(tmp_path / "host.sock", {Evacuate: lambda _asked, _progress: answer})
    server.start()
    try:
        told = CliRunner().invoke(cli, ["--run-dir", str(tmp_path), "evacuate"])
        assert told.exit_code == code
        assert "db1 runs on beta now, in term 4." in told.output
        assert ("db2 stays here: x" in told.output) is bool(stayed)
        as_json = CliRunner().invoke(cli, ["--run-dir", str(tmp_path), "evacuate", "--json"])
        assert json.loads(as_json.stdout) == plain(answer)
    finally:
        server.close()
