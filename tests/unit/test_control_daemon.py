# SPDX-License-Identifier: Apache-2.0
"""The host daemon with workers that have no VM: every way in which a worker, or the daemon itself, can end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remusdb.config import Host, HostConfig, Peer, Protection
from remusdb.control import call
from remusdb.core.messages import Standing
from remusdb.errors import (
    CannotProtect,
    ConfigError,
    Fenced,
    NotProtected,
    PeerUnreachable,
    RefusedForSafety,
    RemusError,
    UsageError,
    VmError,
)
from remusdb.history import read as read_history
from remusdb.host import tender as tender_module
from remusdb.host import worker_link, worker_lock
from remusdb.host.daemon import HostDaemon
from remusdb.host.fence import PutAway
from remusdb.host.order import Order
from remusdb.host.record import VmRecord
from remusdb.state import StateStore, VmState

WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


class NoLibvirt:
    """An inspection with VMs of its own."""

    def __init__(self) -> None:
        self.known = {"db1": True, "web": True, "spare": False}

    def vms(self) -> dict[str, bool]:
        return dict(self.known)

    def check(self, vm: str, peer: str | None) -> list[dict[str, Any]]:
        return [{"name": "kernel", "ok": True, "level": "required", "detail": f"{vm} {peer}", "hint": ""}]

    def prepare(self, vm: str) -> list[str]:
        return [f"edited {vm}"]

    def start(self, vm: str) -> None:
        self.known[vm] = True

    def guard_starts(self, state_dir: Path) -> bool:
        return False


class DeadLibvirt(NoLibvirt):
    """An inspection whose libvirtd is down."""

    def vms(self) -> dict[str, bool]:
        raise VmError("libvirt at qemu:///system: no socket")


def ask_standing(order: Order, term: int) -> Standing:
    """The other host's word: it owns what is called `taken`, and keeps a standby of all else."""
    if order.vm == "taken":
        return Standing(order.vm, term + 1, order.peer.name, "promoted", "it took over")
    if order.vm == "quiet":
        raise PeerUnreachable("no route")
    if order.vm == "gone":
        return Standing(order.vm, term, order.host, "none", "the agent was restarted")
    return Standing(order.vm, term, order.host, "standby", "follows")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostConfig:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(tender_module, "RETRY_S", (0.05,))
    monkeypatch.setattr(tender_module, "ASK_S", (0.05,))
    monkeypatch.setattr(tender_module, "LOOK_S", 0.02)
    monkeypatch.setattr(tender_module, "ask_standing", ask_standing)
    return HostConfig(
        host=Host(name="alpha", run_dir=tmp_path / "run", state_dir=tmp_path / "state"),
        peers={"beta": Peer(address="192.0.2.2"), "gamma": Peer(address="192.0.2.3")},
        vms={"db1": Protection(epoch_ms=25)},
    )


class Running:
    """A daemon and how to ask it."""

    def __init__(
        self, config: HostConfig, inspection: NoLibvirt | None = None, worker_argv: tuple[str, ...] = WORKER
    ) -> None:
        self.libvirt = inspection or NoLibvirt()
        self.daemon = HostDaemon(config, worker_argv=worker_argv, inspection=self.libvirt)
        self.socket = config.host.run_dir / "host.sock"
        config.host.state_dir.mkdir(parents=True, exist_ok=True)
        self.daemon.start()

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        return call(self.socket, op, args, timeout_s=20)

    def status(self, vm: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("status", vm=vm)["vms"][0]
        return found

    def worker_pid(self, vm: str) -> int:
        link = self.daemon._keeper.record(vm).link
        assert link is not None
        return link.pid


@pytest.fixture
def daemon(config: HostConfig) -> Iterator[Running]:
    running = Running(config)
    yield running
    running.daemon.stop()


def wait_for(what: Callable[[], bool], timeout_s: float = 10) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_protect_tells_progress_and_keeps_state(daemon: Running, config: HostConfig) -> None:
    seen: list[dict[str, Any]] = []
    status = call(daemon.socket, "protect", {"vm": "db1", "to": "beta"}, seen.append, timeout_s=20)
    assert seen == [{"step": "memory", "done": 1, "total": 2, "unit": "MiB"}]
    assert (status["state"], status["peer"], status["term"]) == ("protected", "beta", 7)
    assert "unknown" not in status
    kept = StateStore(config.host.state_dir).load("db1")
    assert (kept.role, kept.peer, kept.term, kept.wanted) == ("protected", "beta", 7, True)


def test_the_order_carries_the_vms_own_settings(daemon: Running) -> None:
    order = daemon.daemon._keeper.workers.order(daemon.daemon._keeper.record("db1"), "beta")
    assert order["protection"]["epoch_ms"] == 25
    assert order["peer"] == {"name": "beta", "address": "192.0.2.2", "port": 7473}
    assert order["tls"]["ca"] == "/etc/remusdb/tls/ca.pem"
    msgspec.json.encode(order)


def test_status_lists_what_libvirt_knows(daemon: Running) -> None:
    daemon.ask("protect", vm="db1", to="beta")
    states = {vm["vm"]: (vm["state"], vm["reason"]) for vm in daemon.ask("status", vm=None)["vms"]}
    assert states == {
        "db1": ("protected", ""),
        "web": ("unprotected", ""),
        "spare": ("unprotected", "not running"),
    }
    with pytest.raises(VmError, match="no VM nosuch"):
        daemon.ask("status", vm="nosuch")


def test_status_without_libvirt(config: HostConfig) -> None:
    running = Running(config, DeadLibvirt())
    running.ask("protect", vm="db1", to="beta")
    told = running.ask("status")
    assert [vm["vm"] for vm in told["vms"]] == ["db1"]
    assert "no socket" in told["warnings"][0]
    running.daemon.stop()


def test_the_age_of_the_last_commit_grows_without_news(daemon: Running) -> None:
    daemon.ask("protect", vm="db1", to="beta")
    first = daemon.status("db1")["committed_age_ms"]
    time.sleep(0.05)
    assert daemon.status("db1")["committed_age_ms"] >= first + 40


def test_protecting_twice_is_once(daemon: Running) -> None:
    daemon.ask("protect", vm="db1", to="beta")
    pid = daemon.worker_pid("db1")
    assert daemon.ask("protect", vm="db1", to="beta")["state"] == "protected"
    assert daemon.worker_pid("db1") == pid
    with pytest.raises(RefusedForSafety, match="which may have taken it over"):
        daemon.ask("protect", vm="db1", to="gamma")


def test_an_unknown_peer_names_the_known(daemon: Running) -> None:
    with pytest.raises(ConfigError, match="unknown peer `delta`") as caught:
        daemon.ask("protect", vm="db1", to="delta")
    assert caught.value.hint.endswith("beta, gamma")


@pytest.mark.parametrize("vm", [None, "", "../x", "a" * 300, "a\nb", 7])
def test_a_vm_must_have_a_name(daemon: Running, vm: object) -> None:
    with pytest.raises(UsageError, match="`vm` is a name"):
        daemon.ask("protect", vm=vm, to="beta")


def test_unprotect_forgets(daemon: Running, config: HostConfig) -> None:
    daemon.ask("protect", vm="db1", to="beta")
    pid = daemon.worker_pid("db1")
    assert daemon.ask("unprotect", vm="db1", peer_is_dead=False) == {}
    kept = StateStore(config.host.state_dir).load("db1")
    assert (kept.role, kept.term, kept.wanted, kept.armed) == ("none", 7, False, False)
    assert daemon.status("db1")["state"] == "unprotected"
    wait_for(lambda: gone(pid))
    with pytest.raises(NotProtected):
        daemon.ask("unprotect", vm="db1", peer_is_dead=False)
    assert daemon.ask("protect", vm="db1", to="gamma")["state"] == "protected"


def test_an_unprotect_is_not_undone_by_who_looks_after_the_vms(
    daemon: Running, config: HostConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = worker_link.WorkerLink.stop

    def stop_slowly(link: worker_link.WorkerLink) -> None:
        stop(link)
        time.sleep(0.3)  # many looks at a VM whose worker ended, and whose file says that it is protected

    daemon.ask("protect", vm="db1", to="beta")
    monkeypatch.setattr(worker_link.WorkerLink, "stop", stop_slowly)
    daemon.ask("unprotect", vm="db1", peer_is_dead=False)
    assert daemon.daemon._keeper.record("db1").link is None
    assert StateStore(config.host.state_dir).load("db1").role == "none"
    assert "resync" not in [event.event for event in history(daemon, config, "db1")]


def test_a_refused_unprotect_leaves_it_protected(daemon: Running) -> None:
    daemon.libvirt.known["stubborn"] = True
    daemon.ask("protect", vm="stubborn", to="beta")
    with pytest.raises(RefusedForSafety):
        daemon.ask("unprotect", vm="stubborn", peer_is_dead=False)
    assert daemon.status("stubborn")["state"] == "protected"
    daemon.ask("unprotect", vm="stubborn", peer_is_dead=True)
    with pytest.raises(UsageError):
        daemon.ask("unprotect", vm="stubborn", peer_is_dead="yes")


def test_a_vm_that_is_off_can_always_be_forgotten(daemon: Running) -> None:
    daemon.ask("protect", vm="stubborn", to="beta")
    assert "only forgotten (beta does not answer)" in daemon.ask("unprotect", vm="stubborn", peer_is_dead=False)["note"]
    with pytest.raises(NotProtected):
        daemon.ask("unprotect", vm="stubborn", peer_is_dead=False)


def test_a_vm_is_not_forgotten_when_libvirt_does_not_know(config: HostConfig) -> None:
    running = Running(config, DeadLibvirt())
    running.ask("protect", vm="stubborn", to="beta")
    with pytest.raises(RefusedForSafety):
        running.ask("unprotect", vm="stubborn", peer_is_dead=False)
    running.daemon.stop()


def put(config: HostConfig, vm: str, **state: Any) -> None:
    """What an earlier daemon left."""
    StateStore(config.host.state_dir).update(vm, **state)


def test_a_fenced_vm_is_protected_to_nobody(config: HostConfig) -> None:
    put(config, "db1", role="fenced", term=8, peer="beta", owner="beta", put_away=True)
    running = Running(config)
    assert running.status("db1")["term"] == 8
    for peer in ("beta", "gamma"):
        with pytest.raises(Fenced, match="host beta owns VM db1 since term 8"):
            running.ask("protect", vm="db1", to=peer)
    running.daemon.stop()


def test_an_initial_copy_that_was_broken_off_may_go_elsewhere(config: HostConfig) -> None:
    put(config, "db1", role="seeding", term=8, peer="beta")
    running = Running(config)
    assert running.ask("protect", vm="db1", to="gamma")["state"] == "protected"
    running.daemon.stop()


def test_a_vm_that_cannot_be_protected(daemon: Running) -> None:
    for _ in range(2):  # the second try gets as far as the first
        with pytest.raises(CannotProtect, match="vhost-user") as caught:
            daemon.ask("protect", vm="unfit", to="beta")
        assert caught.value.hint == "take it out"
        assert (daemon.status("unfit")["state"], daemon.status("unfit")["reason"]) == ("failed", "vhost-user")


class Picky(NoLibvirt):
    """An inspection that finds something."""

    def check(self, vm: str, peer: str | None) -> list[dict[str, Any]]:
        return [{"name": "devices", "ok": False, "level": "required", "detail": "a TPM", "hint": "take it out"}]


def test_the_preflight_refuses_before_a_worker_is_started(config: HostConfig) -> None:
    running = Running(config, Picky())
    with pytest.raises(CannotProtect, match="VM db1 cannot be protected: devices: a TPM"):
        running.ask("protect", vm="db1", to="beta")
    assert running.status("db1")["state"] == "failed"
    assert not (config.host.state_dir / "db1.order").exists()
    running.daemon.stop()


def test_a_vm_with_the_gate_still_in_has_passed_the_preflight(config: HostConfig) -> None:
    put(config, "db1", role="protected", term=7, peer="beta", armed=True, wanted=True)
    running = Running(config, Picky())
    wait_for(lambda: running.status("db1")["state"] == "protected")
    running.daemon.stop()


def test_a_vm_that_turns_out_to_be_fenced_says_so(daemon: Running) -> None:
    with pytest.raises(Fenced):
        daemon.ask("protect", vm="unlucky", to="beta")
    assert (daemon.status("unlucky")["state"], daemon.status("unlucky")["term"]) == ("fenced", 9)


def test_a_worker_that_dies_in_seeding(daemon: Running) -> None:
    with pytest.raises(RemusError, match="ended with exit code 3"):
        daemon.ask("protect", vm="dies", to="beta")
    assert daemon.status("dies")["state"] == "failed"


def test_a_worker_that_is_killed_is_followed_by_another(daemon: Running, config: HostConfig) -> None:
    daemon.ask("protect", vm="db1", to="beta")
    pid = daemon.worker_pid("db1")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: gone(pid))  # reaped
    wait_for(lambda: daemon.status("db1")["state"] == "protected" and daemon.worker_pid("db1") != pid)
    assert "resync" in [event.event for event in history(daemon, config, "db1")]


def history(daemon: Running, config: HostConfig, vm: str) -> list[Any]:
    daemon.daemon._history.flush(5)
    return read_history(config.host.state_dir, vm)


def test_without_the_backups_answer_the_output_stays_held(daemon: Running) -> None:
    daemon.libvirt.known["quiet"] = True
    daemon.ask("protect", vm="quiet", to="beta")
    os.kill(daemon.worker_pid("quiet"), signal.SIGKILL)
    wait_for(lambda: "no route; output is held" in daemon.status("quiet")["reason"])
    assert daemon.status("quiet")["state"] == "held"
    with pytest.raises(RefusedForSafety, match="protected to beta"):
        daemon.ask("protect", vm="quiet", to="gamma")


def test_what_another_host_owns_is_put_away(
    daemon: Running, config: HostConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def put_away(_uri: str, state: VmState, policy: str, *_folders: Path) -> PutAway:
        done.append(f"{state.vm} {state.role} {policy}")
        return PutAway({"vda": "/kept/vda.raw"}, None, "disks kept: vda")

    monkeypatch.setattr(tender_module, "put_away", put_away)
    daemon.libvirt.known["taken"] = True
    daemon.ask("protect", vm="taken", to="beta")
    os.kill(daemon.worker_pid("taken"), signal.SIGKILL)
    wait_for(lambda: bool(daemon.status("taken")["kept"]))
    told = daemon.status("taken")
    assert (told["state"], told["owner"], told["term"]) == ("fenced", "beta", 8)
    assert "host beta owns the VM since term 8; disks kept: vda" in told["reason"]
    assert done == ["taken fenced keep"]
    assert [event.event for event in history(daemon, config, "taken")][-2:] == ["fenced", "kept"]


def test_a_session_that_ended_by_itself_can_be_followed_by_another(daemon: Running) -> None:
    daemon.libvirt.known["renounced"] = True
    for _ in range(2):
        daemon.ask("protect", vm="renounced", to="beta")
        wait_for(lambda: daemon.status("renounced")["state"] == "unprotected")
        assert daemon.status("renounced")["reason"] == "the agent gave up"


def test_an_earlier_worker_is_not_heard(tmp_path: Path) -> None:
    record = VmRecord("db1", StateStore(tmp_path))
    old, new = (worker_link.WorkerLink("db1", WORKER, record, tmp_path / "lock") for _ in range(2))
    record.claim(old, "beta")
    record.drop_link(old)
    record.claim(new, "beta")
    record.on_status(old, {"state": "protected"})
    record.on_end(old, "ended")
    assert record.link is new and record.status()["state"] == "seeding"


def test_unprotect_after_the_worker_died_takes_the_wiring_out(daemon: Running, config: HostConfig) -> None:
    daemon.libvirt.known["quiet"] = True
    daemon.ask("protect", vm="quiet", to="beta")
    os.kill(daemon.worker_pid("quiet"), signal.SIGKILL)
    wait_for(lambda: daemon.status("quiet")["state"] == "held")
    daemon.ask("unprotect", vm="quiet", peer_is_dead=True)
    assert (config.host.state_dir / "quiet.taken-out").read_text() == "protected 7"
    assert daemon.status("quiet")["state"] == "unprotected"


def test_unprotect_while_seeding(daemon: Running) -> None:
    failed: list[RemusError] = []

    def protect() -> None:
        try:
            daemon.ask("protect", vm="slow", to="beta")
        except RemusError as exc:
            failed.append(exc)

    thread = threading.Thread(target=protect)
    thread.start()
    wait_for(lambda: bool(daemon.daemon._keeper.statuses().get("slow", {}).get("reason") == "copying memory"))
    daemon.ask("unprotect", vm="slow", peer_is_dead=False)
    thread.join(10)
    assert str(failed[0]) == "given up"


def test_a_restarted_daemon_adopts_the_worker(config: HostConfig) -> None:
    first = Running(config)
    first.ask("protect", vm="db1", to="beta")
    pid = first.worker_pid("db1")
    first.daemon.stop()
    assert not gone(pid)
    second = Running(config)
    wait_for(lambda: second.status("db1")["reason"] == "it went on")
    assert second.worker_pid("db1") == pid and second.status("db1")["state"] == "protected"
    assert second.ask("unprotect", vm="db1", peer_is_dead=False) == {}
    second.daemon.stop()


def test_a_peer_that_is_away_is_tried_again(config: HostConfig) -> None:
    put(config, "flaky", role="protected", term=7, peer="beta", armed=True, wanted=True)
    inspection = NoLibvirt()
    inspection.known["flaky"] = True
    running = Running(config, inspection)

    def held_between_tries() -> bool:
        told = running.status("flaky")
        return told["state"] == "held" and "no route" in told["reason"]

    wait_for(held_between_tries)
    (config.host.state_dir / "peer-is-back").touch()
    wait_for(lambda: running.status("flaky")["state"] == "protected")
    running.daemon.stop()


@pytest.mark.parametrize(("vm", "peer", "state"), [("unfit", "beta", "held"), ("unlucky", "beta", "fenced")])
def test_what_cannot_be_taken_up_says_why(config: HostConfig, vm: str, peer: str, state: str) -> None:
    put(config, vm, role="protected", term=7, peer=peer, armed=True, wanted=True)
    inspection = NoLibvirt()
    inspection.known[vm] = True
    running = Running(config, inspection)
    wait_for(lambda: running.status(vm)["state"] == state and running.status(vm)["reason"] != "protected")
    running.daemon.stop()


def test_a_vm_that_nobody_runs_is_started_where_it_used_to_start_by_itself(config: HostConfig) -> None:
    """Both hosts lost their power: the other one never took over, and says so."""
    put(config, "gone", role="protected", term=7, peer="beta", owner="alpha", armed=True, wanted=True, autostart=True)
    inspection = NoLibvirt()
    inspection.known["gone"] = False
    running = Running(config, inspection)
    wait_for(lambda: inspection.known["gone"])
    wait_for(lambda: running.status("gone")["state"] == "protected")
    running.daemon.stop()


def test_a_vm_that_was_taken_over_here_says_what_to_do(config: HostConfig) -> None:
    put(config, "db1", role="promoted", term=4, owner="alpha", peer="beta", reason="beta was silent", resumed_at_ns=1)
    running = Running(config)
    told = running.status("db1")
    assert told["state"] == "unprotected" and "remusdb reprotect db1 --to HOST" in told["reason"]
    assert running.ask("reprotect", vm="db1", to="beta")["state"] == "protected"
    with pytest.raises(NotProtected, match="was not taken over here"):
        running.ask("reprotect", vm="web", to="beta")
    running.daemon.stop()


def test_a_vm_that_was_taken_over_here_is_protected_back_by_itself(config: HostConfig) -> None:
    put(config, "db1", role="promoted", term=4, owner="alpha", peer="beta", resumed_at_ns=1)
    running = Running(msgspec.structs.replace(config, vms={"db1": Protection(auto_reprotect=True)}))
    wait_for(lambda: running.status("db1")["state"] == "protected")
    running.daemon.stop()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 9}', '{"format": 2, "vm": "db1", "peer": 3}'])
def test_unreadable_state_is_shown_and_not_overwritten(config: HostConfig, text: str) -> None:
    file = config.host.state_dir / "vms" / "db1.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    running = Running(config)
    assert running.status("db1")["state"] == "failed"
    with pytest.raises(RemusError, match="cannot be read"):
        running.ask("protect", vm="db1", to="beta")
    assert file.read_text() == text
    file.unlink()
    assert running.ask("protect", vm="db1", to="beta")["state"] == "protected"
    running.daemon.stop()


def test_a_worker_that_does_not_stop_is_killed(config: HostConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_link.WorkerLink.stop, "__defaults__", (0.2,))
    running = Running(config)
    running.ask("protect", vm="deaf", to="beta")
    pid = running.worker_pid("deaf")
    running.ask("unprotect", vm="deaf", peer_is_dead=True)
    assert gone(pid)
    running.daemon.stop()


def test_a_vm_has_one_worker_whatever_became_of_earlier_daemons(
    daemon: Running, config: HostConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_lock.hold_lock, "__defaults__", (0.2,))
    lingering = worker_lock.hold_lock(config.host.run_dir / "worker-db1.lock", "db1")
    with pytest.raises(RemusError, match="an earlier worker of db1 does not end"):
        daemon.ask("protect", vm="db1", to="beta")
    assert daemon.status("db1")["state"] == "failed"
    os.close(lingering)
    assert daemon.ask("protect", vm="db1", to="beta")["state"] == "protected"
    with pytest.raises(RemusError, match="an earlier worker"):  # the worker has the lock now, not the daemon
        worker_lock.hold_lock(config.host.run_dir / "worker-db1.lock", "db1")


def test_a_worker_that_cannot_be_started(config: HostConfig) -> None:
    running = Running(config, worker_argv=("/nonexistent/worker",))
    for _ in range(2):
        with pytest.raises(RemusError, match="the worker of db1 cannot be started"):
            running.ask("protect", vm="db1", to="beta")
    assert running.status("db1")["state"] == "failed"
    running.daemon.stop()


def test_workers_outlive_the_thread_that_asked_and_die_with_the_daemon(config: HostConfig, tmp_path: Path) -> None:
    script = tmp_path / "daemon.py"
    script.write_text(
        "import sys, time, msgspec, test_control_daemon as t\n"
        "from remusdb.config import HostConfig\n"
        f"config = msgspec.convert({msgspec.to_builtins(config, enc_hook=str)!r}, HostConfig,"
        " dec_hook=lambda kind, value: kind(value))\n"
        "running = t.Running(config)\n"
        "running.ask('protect', vm='db1', to='beta')\n"
        "print(running.worker_pid('db1'), flush=True)\n"
        "time.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        time.sleep(0.2)  # the control connection's thread has ended
        assert not gone(worker)
        process.kill()
    wait_for(lambda: gone(worker) or "Z (zombie)" in Path(f"/proc/{worker}/status").read_text())


def test_check_and_prepare_reach_the_inspection(daemon: Running) -> None:
    assert daemon.ask("check", vm="db1", to="beta")["checks"][0]["detail"] == "db1 beta"
    assert daemon.ask("check", vm="db1", to=None)["checks"][0]["detail"] == "db1 None"
    assert daemon.ask("prepare", vm="db1") == {"changes": ["edited db1"]}
    with pytest.raises(ConfigError):
        daemon.ask("check", vm="db1", to="delta")


def test_run_notifies_and_ends_on_sigterm(config: HostConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        daemon = HostDaemon(config, worker_argv=WORKER, inspection=NoLibvirt())
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        timer.start()
        try:
            daemon.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        assert [systemd.recv(100), systemd.recv(100)] == [b"READY=1", b"STOPPING=1"]
    assert not (config.host.run_dir / "host.sock").exists()
