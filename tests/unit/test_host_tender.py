# SPDX-License-Identifier: Apache-2.0
"""What the host daemon does for a VM without being asked, with workers that have no VM."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgspec
import pytest

from remusdb.config import HostConfig, Protection
from remusdb.control.api import Reprotect
from remusdb.errors import (
    NotProtected,
    RefusedForSafety,
    RemusError,
)
from remusdb.host import reconciler as tender_module
from remusdb.host import worker_process as worker_link
from remusdb.host.quarantine.retire import PutAway
from remusdb.names import VmName
from remusdb.preflight.checks import Check
from remusdb.reasons import Code, Reason
from remusdb.state import StateStore, VmState
from tests.unit.host_daemon_rig import NoLibvirt, Running, history, put, wait_for


def code(daemon: Running, vm: str) -> Code | None:
    """Why it is in its state."""
    why = daemon.status(vm).why
    return why.code if why else None


def test_without_the_backups_answer_the_output_stays_held(daemon: Running) -> None:
    daemon.libvirt.known["quiet"] = True
    daemon.protect("quiet")
    os.kill(daemon.worker_pid("quiet"), signal.SIGKILL)
    wait_for(lambda: code(daemon, "quiet") is Code.PEER_UNREACHABLE_HELD)
    assert daemon.status("quiet").state == "held"
    with pytest.raises(RefusedForSafety, match="protected to beta"):
        daemon.protect("quiet", "gamma")


def test_what_another_host_owns_is_put_away(
    daemon: Running, config: HostConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def put_away(_uri: str, state: VmState, policy: str, *_folders: Path) -> PutAway:
        done.append(f"{state.vm} {state.role} {policy}")
        return PutAway({"vda": "/kept/vda.raw"}, {"vda": "raw"}, None, "disks kept: vda")

    monkeypatch.setattr(tender_module, "put_away", put_away)
    daemon.libvirt.known["taken"] = True
    daemon.protect("taken")
    os.kill(daemon.worker_pid("taken"), signal.SIGKILL)
    wait_for(lambda: bool(daemon.status("taken").kept))
    told = daemon.status("taken")
    assert (told.state, told.owner, told.term) == ("fenced", "beta", 8)
    assert told.why == Reason.of(Code.PUT_AWAY, owner="beta", term=8, note="disks kept: vda")
    assert done == ["taken fenced keep"]
    wait_for(lambda: [event.event for event in history(daemon, config, "taken")][-2:] == ["fenced", "kept"])


def test_a_session_that_ended_by_itself_can_be_followed_by_another(daemon: Running) -> None:
    daemon.libvirt.known["renounced"] = True
    for _ in range(2):
        daemon.protect("renounced")
        wait_for(lambda: daemon.status("renounced").state == "unprotected")
        assert daemon.status("renounced").reason == "the agent gave up"


def test_a_peer_that_is_away_is_tried_again(config: HostConfig) -> None:
    put(config, "flaky", role="protected", term=7, peer="beta", armed=True, wanted=True)
    inspection = NoLibvirt()
    inspection.known["flaky"] = True
    running = Running(config, inspection)

    def held_between_tries() -> bool:
        told = running.status("flaky")
        return told.state == "held" and told.why is not None and "no route" in told.why.params.get("why", "")

    wait_for(held_between_tries)
    (config.host.state_dir / "peer-is-back").touch()
    wait_for(lambda: running.status("flaky").state == "protected")
    running.daemon.stop()


@pytest.mark.parametrize(("vm", "peer", "state"), [("unfit", "beta", "held"), ("unlucky", "beta", "fenced")])
def test_what_cannot_be_taken_up_says_why(config: HostConfig, vm: str, peer: str, state: str) -> None:
    put(config, vm, role="protected", term=7, peer=peer, armed=True, wanted=True)
    inspection = NoLibvirt()
    inspection.known[vm] = True
    running = Running(config, inspection)
    wait_for(lambda: running.status(vm).state == state and code(running, vm) is not Code.NO_WORKER)
    running.daemon.stop()


def test_a_vm_that_nobody_runs_is_started_where_it_used_to_start_by_itself(config: HostConfig) -> None:
    """Both hosts lost their power: the other one never took over, and says so."""
    put(config, "gone", role="protected", term=7, peer="beta", owner="alpha", armed=True, wanted=True, autostart=True)
    inspection = NoLibvirt()
    inspection.known["gone"] = False
    running = Running(config, inspection)
    wait_for(lambda: inspection.known["gone"])
    wait_for(lambda: running.status("gone").state == "protected")
    running.daemon.stop()


def test_a_vm_that_was_taken_over_here_says_what_to_do(config: HostConfig) -> None:
    put(config, "db1", role="promoted", term=4, owner="alpha", peer="beta", reason="beta was silent", resumed_at_ns=1)
    running = Running(config)
    told = running.status("db1")
    assert told.state == "unprotected" and code(running, "db1") is Code.TAKEN_OVER_HERE
    assert told.hint == "protect it: remusdb reprotect db1 --to HOST"
    assert running.ask(Reprotect(vm=VmName("db1"), to="beta")).state == "protected"
    with pytest.raises(NotProtected, match="was not taken over here"):
        running.ask(Reprotect(vm=VmName("web"), to="beta"))
    running.daemon.stop()


def test_a_vm_that_was_taken_over_here_is_protected_back_by_itself(config: HostConfig) -> None:
    put(config, "db1", role="promoted", term=4, owner="alpha", peer="beta", resumed_at_ns=1)
    running = Running(msgspec.structs.replace(config, vms={"db1": Protection(auto_reprotect=True)}))
    wait_for(lambda: running.status("db1").state == "protected")
    running.daemon.stop()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 9}', '{"format": 2, "vm": "db1", "peer": 3}'])
def test_unreadable_state_is_shown_and_not_overwritten(config: HostConfig, text: str) -> None:
    file = config.host.state_dir / "vms" / "db1.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    running = Running(config)
    assert running.status("db1").state == "failed"
    with pytest.raises(RemusError, match="cannot be read"):
        running.protect("db1")
    assert file.read_text() == text
    file.unlink()
    assert running.protect("db1").state == "protected"
    running.daemon.stop()


def test_an_unprotect_is_not_undone_by_who_looks_after_the_vms(
    daemon: Running, config: HostConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = worker_link.WorkerLink.stop

    def stop_slowly(link: worker_link.WorkerLink) -> None:
        stop(link)
        time.sleep(0.3)  # many looks at a VM whose worker ended, and whose file says that it is protected

    daemon.protect("db1")
    monkeypatch.setattr(worker_link.WorkerLink, "stop", stop_slowly)
    daemon.unprotect("db1")
    assert daemon.daemon._keeper.record("db1").link is None
    assert StateStore(config.host.state_dir).load("db1").role == "none"
    assert "resync" not in [event.event for event in history(daemon, config, "db1")]


def test_a_vm_that_became_unfit_says_why_once_and_is_protected_when_it_is_fit(config: HostConfig) -> None:
    """Its devices changed, and the next session's preflight refuses them: nobody is told every few seconds."""

    class Drive(NoLibvirt):
        full, looks = True, 0

        def check(self, vm: str, peer: str | None) -> list[Check]:
            self.looks += 1
            full = Check("media", False, "required", "sda has a medium", "eject it")
            return [full] if self.full else super().check(vm, peer)

    put(config, "db1", role="solo", term=7, peer="beta", wanted=True, reason="devices changed: a medium")
    drive = Drive()
    running = Running(config, drive)
    wait_for(lambda: drive.looks > 2)
    told = running.status("db1")
    assert told.state == "solo"
    assert told.why is not None and told.why.code is Code.CANNOT_PROTECT
    assert told.why.params["since"] == "devices changed: a medium" and told.hint == "eject it"
    assert [event.event for event in history(running, config, "db1")] == ["failed"]
    drive.full = False
    wait_for(lambda: running.status("db1").state == "protected")
    running.daemon.stop()


def test_what_the_worker_refuses_is_tried_at_longer_intervals(
    config: HostConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks at the VM while its worker is at work must not make the next try a first one."""
    monkeypatch.setattr(tender_module, "RETRY_S", (0.05, 30.0))
    put(config, "unfit", role="solo", term=7, peer="beta", wanted=True)
    inspection = NoLibvirt()
    inspection.known["unfit"] = True
    running = Running(config, inspection)

    def told() -> list[str]:
        return [event.event for event in history(running, config, "unfit")]

    wait_for(lambda: told().count("resync") == 2)
    time.sleep(1.5)
    assert told().count("resync") == 2 and told().count("failed") == 1
    assert running.status("unfit").state == "solo" and running.status("unfit").hint.startswith("take it out")
    running.daemon.stop()
