# SPDX-License-Identifier: Apache-2.0
"""What the host daemon answers to orders and questions, with workers that have no VM."""

from __future__ import annotations

import threading
import time

import pytest

from remusdb.config import HostConfig
from remusdb.control import Progress
from remusdb.control.api import CheckVm, HostStatus, Prepare, Protect
from remusdb.control.lines import encoded
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
from remusdb.names import VmName
from remusdb.preflight.checks import Check
from remusdb.state import StateStore
from remusdb.worker.spec import ORDERS, PeerAddress, Start
from tests.unit.host_daemon_rig import DeadLibvirt, NoLibvirt, Running, gone, put, wait_for


def test_protect_tells_progress_and_keeps_state(daemon: Running, config: HostConfig) -> None:
    seen: list[Progress] = []
    status = daemon.ask(Protect(vm=VmName("db1"), to="beta"), seen.append)
    assert seen == [Progress(step="memory", done=1, total=2, unit="MiB")]
    assert (status.state, status.peer, status.term) == ("protected", "beta", 7)
    kept = StateStore(config.host.state_dir).load("db1")
    assert (kept.role, kept.peer, kept.term, kept.wanted) == ("protected", "beta", 7, True)


def test_the_order_carries_the_vms_own_settings(daemon: Running) -> None:
    order = daemon.daemon._keeper.workers.order(daemon.daemon._keeper.record("db1"), "beta")
    assert order.protection.epoch_ms == 25
    assert order.peer == PeerAddress("beta", "192.0.2.2", 7473)
    assert ORDERS.read(encoded(Start(order=order))) == Start(order=order)


def test_status_lists_what_libvirt_knows(daemon: Running) -> None:
    daemon.protect("db1")
    states = {vm.vm: (vm.state, vm.reason) for vm in daemon.ask(HostStatus()).vms}
    assert states == {
        "db1": ("protected", ""),
        "web": ("unprotected", ""),
        "spare": ("unprotected", "not running"),
    }
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
    wait_for(lambda: gone(pid))
    with pytest.raises(NotProtected):
        daemon.unprotect("db1")
    assert daemon.protect("db1", "gamma").state == "protected"


def test_a_refused_unprotect_leaves_it_protected(daemon: Running) -> None:
    daemon.libvirt.known["stubborn"] = True
    daemon.protect("stubborn")
    with pytest.raises(RefusedForSafety):
        daemon.unprotect("stubborn")
    assert daemon.status("stubborn").state == "protected"
    daemon.unprotect("stubborn", peer_is_dead=True)
    with pytest.raises(UsageError):
        daemon.say(op="unprotect", vm="stubborn", peer_is_dead="yes")


def test_a_vm_that_is_off_can_always_be_forgotten(daemon: Running) -> None:
    daemon.protect("stubborn")
    assert "only forgotten (beta does not answer)" in daemon.unprotect("stubborn")
    with pytest.raises(NotProtected):
        daemon.unprotect("stubborn")


def test_a_vm_is_not_forgotten_when_libvirt_does_not_know(config: HostConfig) -> None:
    running = Running(config, DeadLibvirt())
    running.protect("stubborn")
    with pytest.raises(RefusedForSafety):
        running.unprotect("stubborn")
    running.daemon.stop()


def test_a_fenced_vm_is_protected_to_nobody(config: HostConfig) -> None:
    put(config, "db1", role="fenced", term=8, peer="beta", owner="beta", put_away=True)
    running = Running(config)
    assert running.status("db1").term == 8
    for peer in ("beta", "gamma"):
        with pytest.raises(Fenced, match="host beta owns VM db1 since term 8"):
            running.protect("db1", peer)
    running.daemon.stop()


def test_an_initial_copy_that_was_broken_off_may_go_elsewhere(config: HostConfig) -> None:
    put(config, "db1", role="seeding", term=8, peer="beta")
    running = Running(config)
    assert running.protect("db1", "gamma").state == "protected"
    running.daemon.stop()


def test_a_vm_that_cannot_be_protected(daemon: Running) -> None:
    for _ in range(2):  # the second try gets as far as the first
        with pytest.raises(CannotProtect, match="vhost-user") as caught:
            daemon.protect("unfit")
        assert caught.value.hint == "take it out"
        assert (daemon.status("unfit").state, daemon.status("unfit").reason) == ("failed", "vhost-user")


class Picky(NoLibvirt):
    """An inspection that finds something."""

    def check(self, vm: str, peer: str | None) -> list[Check]:
        return [Check("devices", False, "required", "a TPM", "take it out")]


def test_the_preflight_refuses_before_a_worker_is_started(config: HostConfig) -> None:
    running = Running(config, Picky())
    with pytest.raises(CannotProtect, match="VM db1 cannot be protected: devices: a TPM"):
        running.protect("db1")
    assert running.status("db1").state == "failed"
    assert not (config.host.state_dir / "db1.order").exists()
    running.daemon.stop()


def test_a_vm_with_the_gate_still_in_has_passed_the_preflight(config: HostConfig) -> None:
    put(config, "db1", role="protected", term=7, peer="beta", armed=True, wanted=True)
    running = Running(config, Picky())
    wait_for(lambda: running.status("db1").state == "protected")
    running.daemon.stop()


def test_a_vm_that_turns_out_to_be_fenced_says_so(daemon: Running) -> None:
    with pytest.raises(Fenced):
        daemon.protect("unlucky")
    assert (daemon.status("unlucky").state, daemon.status("unlucky").term) == ("fenced", 9)


def test_unprotect_while_seeding(daemon: Running) -> None:
    failed: list[RemusError] = []

    def protect() -> None:
        try:
            daemon.protect("slow")
        except RemusError as exc:
            failed.append(exc)

    thread = threading.Thread(target=protect)
    thread.start()
    wait_for(lambda: "copying memory" in [one.reason for one in daemon.daemon._keeper.statuses().values()])
    daemon.unprotect("slow")
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
