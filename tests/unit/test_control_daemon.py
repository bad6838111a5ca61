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
from remusdb.host import keeper as keeper_module
from remusdb.host import worker_link, worker_lock
from remusdb.host.daemon import HostDaemon
from remusdb.host.record import VmRecord
from remusdb.host.state import SavedVm, StateStore

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


class DeadLibvirt(NoLibvirt):
    """An inspection whose libvirtd is down."""

    def vms(self) -> dict[str, bool]:
        raise VmError("libvirt at qemu:///system: no socket")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostConfig:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setattr(keeper_module, "RETRY_S", (0.05,))
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
        link = self.daemon._keeper._records[vm].link
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
    assert kept == SavedVm("db1", "beta", {"role": "protected", "term": 7})


def test_the_order_carries_the_vms_own_settings(daemon: Running) -> None:
    order = daemon.daemon._keeper._workers.order(daemon.daemon._keeper._record("db1"), "beta")
    assert order["protection"]["epoch_ms"] == 25
    assert order["peer"] == {"name": "beta", "address": "192.0.2.2", "port": 7473}
    assert order["tls"]["ca"] == "/etc/remusdb/tls/ca.pem"
    assert order["previous"] is None
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


def test_protecting_twice_is_refused(daemon: Running) -> None:
    daemon.ask("protect", vm="db1", to="beta")
    with pytest.raises(RemusError, match="db1 is already protected to beta"):
        daemon.ask("protect", vm="db1", to="beta")
    assert daemon.status("db1")["state"] == "protected"


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
    assert StateStore(config.host.state_dir).names() == []
    assert daemon.status("db1")["state"] == "unprotected"
    wait_for(lambda: gone(pid))
    with pytest.raises(NotProtected):
        daemon.ask("unprotect", vm="db1", peer_is_dead=False)
    assert daemon.ask("protect", vm="db1", to="gamma")["state"] == "protected"


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


def test_a_fenced_vm_goes_to_no_other_peer(config: HostConfig) -> None:
    StateStore(config.host.state_dir).save(SavedVm("db1", "beta", {"role": "fenced", "term": 8}))
    running = Running(config)
    assert running.status("db1")["term"] == 8
    with pytest.raises(RefusedForSafety, match="which may have taken it over"):
        running.ask("protect", vm="db1", to="gamma")
    running.daemon.stop()


def test_an_initial_copy_that_was_broken_off_may_go_elsewhere(config: HostConfig) -> None:
    StateStore(config.host.state_dir).save(SavedVm("db1", "beta", {"role": "seeding", "term": 8}))
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
    StateStore(config.host.state_dir).save(SavedVm("db1", "beta", {"role": "protected", "term": 7}))
    running = Running(config, Picky())
    wait_for(lambda: running.status("db1")["state"] == "protected")
    running.daemon.stop()


def test_a_fenced_vm_says_so(daemon: Running) -> None:
    with pytest.raises(Fenced):
        daemon.ask("protect", vm="fenced", to="beta")
    assert daemon.status("fenced")["state"] == "fenced"


def test_a_worker_that_dies_in_seeding(daemon: Running) -> None:
    with pytest.raises(RemusError, match="ended with exit code 3"):
        daemon.ask("protect", vm="dies", to="beta")
    assert daemon.status("dies")["state"] == "failed"


def test_a_worker_that_is_killed(daemon: Running) -> None:
    daemon.ask("protect", vm="db1", to="beta")
    pid = daemon.worker_pid("db1")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: daemon.status("db1")["state"] == "failed")
    reason = daemon.status("db1")["reason"]
    assert "killed by SIGKILL" in reason and "output stays held" in reason
    wait_for(lambda: gone(pid))  # reaped
    with pytest.raises(RefusedForSafety, match="protected to beta"):
        daemon.ask("protect", vm="db1", to="gamma")
    assert daemon.ask("protect", vm="db1", to="beta")["state"] == "protected"


def test_a_session_that_ended_by_itself_can_be_followed_by_another(daemon: Running) -> None:
    for _ in range(2):
        daemon.ask("protect", vm="renounced", to="beta")
        wait_for(lambda: daemon.status("renounced")["state"] == "failed")
        assert daemon.status("renounced")["reason"] == "the agent gave up"
    os.kill(daemon.worker_pid("renounced"), signal.SIGKILL)
    wait_for(lambda: daemon.daemon._keeper._records["renounced"].link is None)
    assert daemon.status("renounced")["reason"] == "the agent gave up"
    assert daemon.ask("unprotect", vm="renounced", peer_is_dead=False) == {}


def test_an_earlier_worker_is_not_heard(tmp_path: Path) -> None:
    record = VmRecord("db1", StateStore(tmp_path))
    old, new = (worker_link.WorkerLink("db1", WORKER, record, tmp_path / "lock") for _ in range(2))
    record.claim(old, "beta")
    record.drop_link(old)
    record.claim(new, "beta")
    record.on_status(old, {"state": "protected"})
    record.on_end(old, "ended")
    with pytest.raises(RemusError, match="another worker"):
        record.on_save(old, {"role": "protected"})
    assert record.link is new and record.status()["state"] == "seeding" and record.kept is None


def test_unprotect_after_the_worker_died_takes_the_wiring_out(daemon: Running, config: HostConfig) -> None:
    daemon.ask("protect", vm="db1", to="beta")
    os.kill(daemon.worker_pid("db1"), signal.SIGKILL)
    wait_for(lambda: daemon.status("db1")["state"] == "failed")
    daemon.ask("unprotect", vm="db1", peer_is_dead=True)
    assert (config.host.state_dir / "db1.taken-out").read_text() == "{'role': 'protected', 'term': 7}"
    assert daemon.status("db1")["state"] == "unprotected"


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
    with pytest.raises(RemusError, match=r"is being protected \(seeding\)"):
        daemon.ask("protect", vm="slow", to="beta")
    daemon.ask("unprotect", vm="slow", peer_is_dead=False)
    thread.join(10)
    assert str(failed[0]) == "given up"


def test_state_that_cannot_be_saved_ends_the_protection(daemon: Running, config: HostConfig) -> None:
    blocker = config.host.state_dir / "db1.json.partial"
    blocker.mkdir()
    with pytest.raises(RemusError, match="not saved"):
        daemon.ask("protect", vm="db1", to="beta")
    blocker.rmdir()
    assert daemon.ask("protect", vm="db1", to="beta")["state"] == "protected"


def test_a_restarted_daemon_takes_up_what_was_protected(config: HostConfig) -> None:
    first = Running(config)
    first.ask("protect", vm="db1", to="beta")
    pid = first.worker_pid("db1")
    first.daemon.stop()
    assert gone(pid)
    second = Running(config)
    wait_for(lambda: second.status("db1")["state"] == "protected")
    assert (config.host.state_dir / "db1.order").read_text() == "{'role': 'protected', 'term': 7}"
    second.daemon.stop()


def test_a_peer_that_is_away_is_tried_again(config: HostConfig) -> None:
    StateStore(config.host.state_dir).save(SavedVm("flaky", "beta", {"role": "protected", "term": 7}))
    running = Running(config)

    def held_between_tries() -> bool:
        told = running.status("flaky")
        return told["state"] == "held" and "last try: no route" in told["reason"]

    wait_for(held_between_tries)
    (config.host.state_dir / "peer-is-back").touch()
    wait_for(lambda: running.status("flaky")["state"] == "protected")
    running.daemon.stop()


@pytest.mark.parametrize(
    ("vm", "peer", "state"), [("unfit", "beta", "failed"), ("fenced", "beta", "fenced"), ("db1", "gone", "failed")]
)
def test_what_cannot_be_taken_up_says_why(config: HostConfig, vm: str, peer: str, state: str) -> None:
    StateStore(config.host.state_dir).save(SavedVm(vm, peer, {"role": "protected"}))
    running = Running(config)
    wait_for(lambda: running.status(vm)["state"] == state)
    assert "output stays held" in running.status(vm)["reason"]
    running.daemon.stop()


def test_state_of_a_fenced_vm_is_shown_again(config: HostConfig) -> None:
    StateStore(config.host.state_dir).save(SavedVm("db1", "beta", {"role": "fenced", "reason": "term 9"}))
    running = Running(config)
    assert (running.status("db1")["state"], running.status("db1")["reason"]) == ("fenced", "term 9")
    running.daemon.stop()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 9}', '{"format": 1, "vm": "db1", "peer": 3, "saved": {}}'])
def test_unreadable_state_is_shown_and_not_overwritten(config: HostConfig, text: str) -> None:
    config.host.state_dir.mkdir()
    file = config.host.state_dir / "db1.json"
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
    running.daemon.stop()
    assert gone(pid)


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
