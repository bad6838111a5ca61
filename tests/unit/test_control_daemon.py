# SPDX-License-Identifier: Apache-2.0
"""What the host daemon answers to commands and questions, with workers that have no VM."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from remusdb.config import HostConfig
from remusdb.control import Progress
from remusdb.control.api import CheckVm, Fence, HostStatus, Prepare, Protect, Switchover
from remusdb.control.codec import Failed
from remusdb.control.lines import encoded
from remusdb.control.status import VmStatus
from remusdb.core.terms import TERM_MAX
from remusdb.errors import (
    CannotProtect,
    ConfigError,
    Fenced,
    NotProtected,
    RefusedForSafety,
    RemusError,
    UsageError,
    VmError,
)
from remusdb.host.worker_process import WorkerLink
from remusdb.names import VmName
from remusdb.preflight.checks import Check
from remusdb.state import StateStore
from remusdb.worker.spec import COMMANDS, PeerAddress, Start
from tests.unit.host_daemon_rig import DeadLibvirt, NoLibvirt, Running, gone, put, script
from tests.waiting import LIMIT_S, eventually


def test_protect_tells_progress_and_keeps_state(daemon: Running, config: HostConfig) -> None:
    seen: list[Progress] = []
    status = daemon.ask(Protect(vm=VmName("db1"), to="beta"), seen.append)
    assert seen == [Progress(step="memory", done=1, total=2, unit="MiB")]
    assert (status.state, status.peer, status.term) == ("protected", "beta", 7)
    kept = StateStore(config.host.state_dir).load("db1")
    assert (kept.role, kept.peer, kept.term, kept.wanted) == ("protected", "beta", 7, True)


def test_the_order_carries_the_vms_own_settings(daemon: Running) -> None:
    spec = daemon.daemon.supervisor.workers.spec(daemon.daemon.supervisor.managed("db1"), "beta")
    assert spec.protection.epoch_ms == 25
    assert spec.peer == PeerAddress("beta", "192.0.2.2", 7473)
    assert COMMANDS.read(encoded(Start(spec=spec))) == Start(spec=spec)


def test_status_lists_what_libvirt_knows(daemon: Running) -> None:
    daemon.protect("db1")
    states = {vm.vm: (vm.state, vm.reason) for vm in daemon.ask(HostStatus()).vms}
    assert states == {
        "db1": ("protected", ""),
        "web": ("unprotected", ""),
        "spare": ("unprotected", "not running"),
    }
    assert {vm.vm: (vm.wanted, vm.running) for vm in daemon.ask(HostStatus()).vms} == {
        "db1": (True, True), "web": (False, True), "spare": (False, False)
    }  # fmt: skip
    with pytest.raises(VmError, match="no VM nosuch"):
        daemon.status("nosuch")


def test_status_without_libvirt(config: HostConfig) -> None:
    running = Running(config, DeadLibvirt())
    running.protect("db1")
    told = running.ask(HostStatus())
    assert [vm.vm for vm in told.vms] == ["db1"]
    assert "no socket" in told.warnings[0]
    running.daemon.stop()


def test_the_age_of_the_last_commit_grows_without_news(daemon: Running) -> None:
    daemon.protect("db1")
    first = daemon.status("db1").committed_age_ms
    time.sleep(0.05)
    later = daemon.status("db1").committed_age_ms
    assert first is not None and later is not None and later >= first + 40


def test_protecting_twice_is_once(daemon: Running) -> None:
    daemon.protect("db1")
    pid = daemon.worker_pid("db1")
    assert daemon.protect("db1").state == "protected"
    assert daemon.worker_pid("db1") == pid
    with pytest.raises(RefusedForSafety, match="which may have taken it over"):
        daemon.protect("db1", "gamma")


def test_an_unknown_peer_names_the_known(daemon: Running) -> None:
    with pytest.raises(ConfigError, match="unknown peer `delta`") as caught:
        daemon.protect("db1", "delta")
    assert caught.value.hint.endswith("beta, gamma")


@pytest.mark.parametrize("vm", [None, "", "../x", "a" * 300, "a\nb", 7])
def test_a_vm_must_have_a_name(daemon: Running, vm: object) -> None:
    with pytest.raises(UsageError, match=r"a name|vm"):
        daemon.say(op="protect", vm=vm, to="beta")


def test_unprotect_forgets(daemon: Running, config: HostConfig) -> None:
    daemon.protect("db1")
    pid = daemon.worker_pid("db1")
    assert daemon.unprotect("db1") == ""
    kept = StateStore(config.host.state_dir).load("db1")
    assert (kept.role, kept.term, kept.wanted, kept.armed) == ("none", 7, False, False)
    assert daemon.status("db1").state == "unprotected"
    eventually(lambda: gone(pid))
    with pytest.raises(NotProtected):
        daemon.unprotect("db1")
    assert daemon.protect("db1", "gamma").state == "protected"


def test_a_refused_unprotect_leaves_it_protected(daemon: Running, config: HostConfig) -> None:
    script(config, "db1", lets_go=False)
    daemon.protect("db1")
    with pytest.raises(RefusedForSafety):
        daemon.unprotect("db1")
    assert daemon.status("db1").state == "protected"
    daemon.unprotect("db1", peer_is_dead=True)
    with pytest.raises(UsageError):
        daemon.say(op="unprotect", vm="db1", peer_is_dead="yes")


def test_a_vm_that_is_off_can_always_be_forgotten(daemon: Running, config: HostConfig) -> None:
    script(config, "db1", lets_go=False)
    daemon.protect("db1")
    daemon.libvirt.known["db1"] = False
    assert "only its protection here was ended (beta does not answer)" in daemon.unprotect("db1")
    with pytest.raises(NotProtected):
        daemon.unprotect("db1")


def test_a_vm_is_not_forgotten_when_libvirt_does_not_know(config: HostConfig) -> None:
    script(config, "db1", lets_go=False)
    running = Running(config, DeadLibvirt())
    running.protect("db1")
    with pytest.raises(RefusedForSafety):
        running.unprotect("db1")
    running.daemon.stop()


def test_a_fenced_vm_is_protected_to_nobody(config: HostConfig) -> None:
    put(config, "db1", role="fenced", term=8, peer="beta", owner="beta", quarantined=True)
    running = Running(config)
    assert running.status("db1").term == 8
    for peer in ("beta", "gamma"):
        with pytest.raises(Fenced, match="host beta has owned VM db1 since term 8"):
            running.protect("db1", peer)
    running.daemon.stop()


def test_an_initial_copy_that_was_broken_off_may_go_elsewhere(config: HostConfig) -> None:
    put(config, "db1", role="seeding", term=8, peer="beta")
    running = Running(config)
    assert running.protect("db1", "gamma").state == "protected"
    running.daemon.stop()


def test_a_vm_that_cannot_be_protected(daemon: Running, config: HostConfig) -> None:
    script(config, "db1", refusal=Failed.by(CannotProtect("vhost-user", hint="remove it")))
    for _ in range(2):  # the second try gets as far as the first
        with pytest.raises(CannotProtect, match="vhost-user") as caught:
            daemon.protect("db1")
        assert caught.value.hint == "remove it"
        assert (daemon.status("db1").state, daemon.status("db1").reason) == ("failed", "vhost-user")


class Picky(NoLibvirt):
    """An inspection that finds something."""

    def check(self, vm: str, peer: str | None) -> list[Check]:
        return [Check("devices", False, "required", "a TPM", "remove it")]


def test_the_preflight_refuses_before_a_worker_is_started(config: HostConfig) -> None:
    running = Running(config, Picky())
    with pytest.raises(CannotProtect, match="VM db1 cannot be protected: devices: a TPM"):
        running.protect("db1")
    assert running.status("db1").state == "failed"
    assert not (config.host.state_dir / "db1.spec").exists()
    running.daemon.stop()


def test_a_vm_with_the_gate_still_in_has_passed_the_preflight(config: HostConfig) -> None:
    put(config, "db1", role="protected", term=7, peer="beta", armed=True, wanted=True)
    running = Running(config, Picky())
    eventually(lambda: running.status("db1").state == "protected")
    running.daemon.stop()


def test_a_vm_that_turns_out_to_be_fenced_says_so(daemon: Running, config: HostConfig) -> None:
    fenced = {"role": "fenced", "term": 9, "owner": "beta", "reason": "term 9", "quarantined": True}
    script(config, "db1", saves=fenced, refusal=Failed.by(Fenced("term 9 exists")))
    with pytest.raises(Fenced):
        daemon.protect("db1")
    assert (daemon.status("db1").state, daemon.status("db1").term) == ("fenced", 9)


def test_unprotect_while_seeding(daemon: Running, config: HostConfig) -> None:
    script(config, "db1", answers=False)
    failed: list[RemusError] = []

    def protect() -> None:
        try:
            daemon.protect("db1")
        except RemusError as exc:
            failed.append(exc)

    thread = threading.Thread(target=protect)
    thread.start()
    eventually(lambda: "copying memory" in [one.reason for one in daemon.daemon.supervisor.statuses().values()])
    daemon.unprotect("db1")
    thread.join(10)
    assert str(failed[0]) == "given up"


def test_check_and_prepare_reach_the_inspection(daemon: Running) -> None:
    db1 = VmName("db1")
    assert daemon.ask(CheckVm(vm=db1, to="beta")).checks[0].detail == "db1 beta"
    assert daemon.ask(CheckVm(vm=db1)).checks[0].detail == "db1 None"
    assert daemon.ask(Prepare(vm=db1)).changes == ["edited db1"]
    with pytest.raises(ConfigError):
        daemon.ask(CheckVm(vm=db1, to="delta"))


@pytest.mark.parametrize("term", [True, False, None, "8", 8.0, -1, 1 << 63, [8]])
def test_a_term_that_is_none_fences_nothing(daemon: Running, term: object) -> None:
    with pytest.raises(UsageError, match="term"):
        daemon.say(op="fence", vm="db1", owner="gamma", term=term)
    assert daemon.status("db1").state != "fenced"


# --- moving ---


def test_a_protected_vm_is_moved_by_its_worker(daemon: Running) -> None:
    daemon.protect("db1")
    moved = daemon.ask(Switchover(vm=VmName("db1")))
    assert (moved.to, moved.term, moved.took_ms) == ("beta", 8, 80.0)


def test_a_switchover_may_begin_with_the_protection_that_it_needs(daemon: Running) -> None:
    assert daemon.ask(Switchover(vm=VmName("db1"), to="beta")).to == "beta"
    with pytest.raises(RefusedForSafety, match="protected to beta"):
        daemon.ask(Switchover(vm=VmName("db1"), to="gamma"))


def test_a_switchover_that_is_refused_leaves_the_vm_protected(daemon: Running, config: HostConfig) -> None:
    script(config, "db1", moves=False)
    daemon.protect("db1")
    with pytest.raises(RefusedForSafety, match="beta does not answer"):
        daemon.ask(Switchover(vm=VmName("db1")))
    assert daemon.status("db1").state == "protected"


def test_what_is_not_protected_here_has_nowhere_to_go(daemon: Running, config: HostConfig) -> None:
    with pytest.raises(NotProtected, match="nowhere to move it to") as caught:
        daemon.ask(Switchover(vm=VmName("db1")))
    assert caught.value.hint == "protect it first: remusdb protect db1 --to HOST"
    put(config, "web", role="fenced", term=8, peer="beta", owner="beta", quarantined=True)
    with pytest.raises(Fenced):
        daemon.ask(Switchover(vm=VmName("web")))


# --- fencing: this machine's agent keeps a standby of the VM, of a newer term ---


def test_a_newer_owner_ends_the_worker_before_the_vm_is_quarantined(daemon: Running, config: HostConfig) -> None:
    daemon.protect("db1")
    pid = daemon.worker_pid("db1")
    for _ in range(2):  # asked again, after an answer that was lost
        daemon.ask(Fence(vm=VmName("db1"), owner="gamma", term=8))
    assert gone(pid) and daemon.quarantines.done == ["db1 fenced keep"]
    told = daemon.status("db1")
    assert (told.state, told.owner, told.peer, told.term) == ("fenced", "gamma", "gamma", 8)
    kept = StateStore(config.host.state_dir).load("db1")
    assert (kept.role, kept.owner, kept.armed, kept.quarantined, kept.quarantined_disks) == (
        *("fenced", "gamma", False, True),
        {"vda": "/kept/vda.raw"},
    )


def test_an_owner_of_no_newer_term_is_not_believed(daemon: Running) -> None:
    daemon.protect("db1")
    for term in (0, 7):
        with pytest.raises(RefusedForSafety, match="is not newer than 7"):
            daemon.ask(Fence(vm=VmName("db1"), owner="gamma", term=term))
    assert daemon.status("db1").state == "protected" and daemon.quarantines.done == []


def test_a_term_that_is_too_far_away_is_come_near_to(daemon: Running) -> None:
    """One word must not make the VM unprotectable for good (decision 0015)."""
    daemon.protect("db1")
    daemon.ask(Fence(vm=VmName("db1"), owner="gamma", term=TERM_MAX))
    assert 7 < daemon.status("db1").term < TERM_MAX


def test_a_vm_that_could_not_be_quarantined_is_fenced_all_the_same(daemon: Running, config: HostConfig) -> None:
    daemon.quarantines.failure = VmError("libvirt did not answer")
    with pytest.raises(VmError, match="did not answer"):
        daemon.ask(Fence(vm=VmName("db1"), owner="gamma", term=8))
    kept = StateStore(config.host.state_dir).load("db1")
    assert (kept.role, kept.owner, kept.term, kept.quarantined) == ("fenced", "gamma", 8, False)


# --- two at a time ---


def in_background(work: Callable[[], VmStatus]) -> tuple[threading.Thread, list[VmStatus | RemusError]]:
    """Do it in a thread; what came of it."""
    outcome: list[VmStatus | RemusError] = []

    def run() -> None:
        try:
            outcome.append(work())
        except RemusError as exc:
            outcome.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def copying(daemon: Running) -> bool:
    return daemon.status("db1").reason == "copying memory"


def test_whoever_asks_for_what_is_under_way_waits_for_it(config: HostConfig) -> None:
    """And gets no error for it: a script that is run again must end as the first run does."""
    put(config, "db1", role="seeding", term=7, peer="beta")
    script(config, "db1", answers=False)
    with Running(config) as running:
        first, _ = in_background(lambda: running.protect("db1"))
        eventually(lambda: copying(running))
        second, outcome = in_background(lambda: running.protect("db1"))
        time.sleep(0.2)
        assert not outcome
        running.unprotect("db1")
        for thread in (first, second):
            thread.join(LIMIT_S)
        assert isinstance(outcome[0], RemusError) and "VM db1 is" in str(outcome[0]), "and it hears how that ended"
        script(config, "db1")
        assert running.protect("db1").state == "protected"


def test_nothing_is_begun_while_the_vm_is_being_unprotected(daemon: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    may, stopping, stop = threading.Event(), threading.Event(), WorkerLink.stop

    def slowly(link: WorkerLink) -> None:
        stopping.set()
        assert may.wait(LIMIT_S)
        stop(link)

    daemon.protect("db1")
    monkeypatch.setattr(WorkerLink, "stop", slowly)
    leaving = threading.Thread(target=lambda: daemon.unprotect("db1"))
    leaving.start()
    assert stopping.wait(LIMIT_S)
    with pytest.raises(RemusError, match="db1"):
        daemon.protect("db1", "gamma")
    may.set()
    leaving.join(LIMIT_S)
    assert daemon.status("db1").state == "unprotected"


def test_a_vm_that_was_lost_in_the_first_moments_is_not_called_protected(daemon: Running, config: HostConfig) -> None:
    script(config, "db1", ends_up="held")
    with pytest.raises(RemusError, match="VM db1 is held"):
        daemon.protect("db1")


def test_wiring_that_cannot_be_taken_out_stays_and_so_does_what_is_held(daemon: Running, config: HostConfig) -> None:
    daemon.others.silent = {"beta"}
    daemon.protect("db1")
    os.kill(daemon.worker_pid("db1"), signal.SIGKILL)
    eventually(lambda: daemon.status("db1").state == "held")
    script(config, "db1", breaks_wiring=True)
    with pytest.raises(RemusError, match="ended with exit code 3"):
        daemon.unprotect("db1", peer_is_dead=True)
    assert StateStore(config.host.state_dir).load("db1").armed
    eventually(lambda: daemon.status("db1").state == "held")
    script(config, "db1")
    daemon.unprotect("db1", peer_is_dead=True)
    assert daemon.status("db1").state == "unprotected"


def test_a_daemon_that_is_ending_begins_nothing(daemon: Running) -> None:
    daemon.daemon.supervisor.stop()
    with pytest.raises(RemusError, match="the host daemon is stopping"):
        daemon.protect("db1")
