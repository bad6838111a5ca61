# SPDX-License-Identifier: Apache-2.0
"""The host daemon with workers that have no VM: every way in which a worker, or the daemon itself, can end."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remusdb.config import HostConfig
from remusdb.control.api import Switchover
from remusdb.control.lines import LineChannel, encoded
from remusdb.control.status import VmStatus
from remusdb.durable import take_lock
from remusdb.errors import BadFrame, RemusError
from remusdb.host.daemon import HostDaemon
from remusdb.host.managed_vm import ManagedVm
from remusdb.host.outside import Outside
from remusdb.host.worker_process import WorkerLink
from remusdb.names import VmName
from remusdb.state import StateStore
from remusdb.worker.spec import Told
from tests.unit.host_daemon_rig import FAST, NoLibvirt, Running, events, gone, put, script
from tests.waiting import eventually


def test_a_worker_that_dies_in_seeding(daemon: Running, config: HostConfig) -> None:
    script(config, "db1", dies=True)
    with pytest.raises(RemusError, match="ended with exit code 3"):
        daemon.protect("db1")
    assert daemon.status("db1").state == "failed"


def test_a_copy_that_broke_off_is_begun_anew(daemon: Running, config: HostConfig) -> None:
    seeding = {"role": "seeding", "term": 7, "peer": "beta", "wanted": True, "reason": "copying"}
    script(config, "db1", saves=seeding, dies=True)
    with pytest.raises(RemusError, match="exit code 3") as caught:
        daemon.protect("db1")
    assert "its log says more" in caught.value.hint and "retrying, until" in caught.value.hint
    assert "remusdb unprotect db1" in caught.value.hint
    script(config, "db1")
    eventually(lambda: daemon.status("db1").state == "protected")


def test_a_worker_that_is_killed_is_followed_by_another(daemon: Running, config: HostConfig) -> None:
    daemon.protect("db1")
    pid = daemon.worker_pid("db1")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: gone(pid))  # reaped
    eventually(lambda: daemon.status("db1").state == "protected" and daemon.worker_pid("db1") != pid)
    assert "resync" in events(daemon, config, "db1")


def test_an_earlier_worker_is_not_heard(tmp_path: Path) -> None:
    managed = ManagedVm("db1", StateStore(tmp_path))
    old, new = (WorkerLink("db1", Outside(), managed, tmp_path / "lock") for _ in range(2))
    managed.claim(old, "beta")
    managed.drop_link(old)
    managed.claim(new, "beta")
    managed.on_status(old, VmStatus(vm="db1", state="protected"))
    managed.on_end(old, "ended")
    assert managed.link is new and managed.status().state == "seeding"


@pytest.fixture
def managed(tmp_path: Path) -> ManagedVm:
    """A VM of which nothing is known, without a daemon."""
    return ManagedVm("db1", StateStore(tmp_path))


def link_of(managed: ManagedVm, tmp_path: Path) -> WorkerLink:
    return WorkerLink("db1", Outside(), managed, tmp_path / "lock")


def test_a_vm_that_has_a_worker_gets_no_other(managed: ManagedVm, tmp_path: Path) -> None:
    first, second = link_of(managed, tmp_path), link_of(managed, tmp_path)
    managed.claim(first, "beta")
    with pytest.raises(RemusError, match="is being protected"):
        managed.claim(second, "beta")
    managed.drop_link(second)
    assert managed.link is first, "only its own worker is let go"


def test_while_it_is_unprotected_a_vm_gets_no_worker_but_for_that(managed: ManagedVm, tmp_path: Path) -> None:
    link = link_of(managed, tmp_path)
    with managed.leaving():
        assert managed.taken
        with pytest.raises(RemusError, match="is being unprotected"):
            managed.claim(link, "beta")
        managed.claim(link, "beta", leaving=True)
        managed.drop_link(link)
    assert not managed.taken
    managed.claim(link, "beta")


@pytest.mark.parametrize(
    ("left", "state"),
    [
        ({"role": "protected", "armed": True, "wanted": True}, "held"),
        ({"role": "solo", "wanted": True}, "solo"),
        ({"role": "seeding"}, "failed"),
        (None, "failed"),
    ],
)
def test_what_a_worker_that_died_leaves_is_what_its_file_says(
    managed: ManagedVm, tmp_path: Path, left: dict[str, Any] | None, state: str
) -> None:
    """Where the peer may hold epochs, output is held: it is never called anything else."""
    link = link_of(managed, tmp_path)
    managed.claim(link, "beta")
    managed.on_status(link, VmStatus(vm="db1", state="protected", term=7))
    if left is not None:
        StateStore(tmp_path).update("db1", term=7, peer="beta", **left)
    assert managed.status().state == "protected"
    managed.on_end(link, "was killed by SIGKILL")
    assert managed.status().state == state and managed.link is None


def test_a_restarted_daemon_adopts_the_worker(config: HostConfig) -> None:
    first = Running(config)
    first.protect("db1")
    pid = first.worker_pid("db1")
    first.daemon.stop()
    assert not gone(pid)
    second = Running(config)
    eventually(lambda: second.status("db1").reason == "it went on")
    assert second.worker_pid("db1") == pid and second.status("db1").state == "protected"
    assert second.unprotect("db1") == ""
    second.daemon.stop()


def test_a_worker_that_does_not_stop_is_killed(config: HostConfig) -> None:
    script(config, "db1", deaf=True)
    running = Running(config, timing=replace(FAST, linger_s=0.2))
    running.protect("db1")
    pid = running.worker_pid("db1")
    running.unprotect("db1", peer_is_dead=True)
    assert gone(pid)
    running.daemon.stop()


def test_a_vm_has_one_worker_whatever_became_of_earlier_daemons(config: HostConfig) -> None:
    running = Running(config, timing=replace(FAST, lock_s=0.2))
    lock = config.host.run_dir / "worker-db1.lock"
    lingering = take_lock(lock, 0)
    assert lingering is not None
    with pytest.raises(RemusError, match="an earlier worker of db1 does not end"):
        running.protect("db1")
    assert running.status("db1").state == "failed"
    os.close(lingering)
    assert running.protect("db1").state == "protected"
    assert take_lock(lock, 0) is None, "the worker has the lock now, not the daemon"
    running.daemon.stop()


def test_a_worker_that_cannot_be_started(config: HostConfig) -> None:
    running = Running(config, worker_argv=("/nonexistent/worker",))
    for _ in range(2):
        with pytest.raises(RemusError, match="the worker of db1 cannot be started"):
            running.protect("db1")
    assert running.status("db1").state == "failed"
    running.daemon.stop()


def test_a_worker_outlives_the_thread_that_asked_and_a_daemon_that_is_killed(
    config: HostConfig, tmp_path: Path
) -> None:
    script = tmp_path / "daemon.py"
    script.write_text(
        "import time, msgspec\n"
        "from tests.unit.host_daemon_rig import Running\n"
        "from remusdb.config import HostConfig\n"
        f"config = msgspec.convert({msgspec.to_builtins(config, enc_hook=str)!r}, HostConfig,"
        " dec_hook=lambda kind, value: kind(value))\n"
        "running = Running(config)\n"
        "running.protect('db1')\n"
        "print(running.worker_pid('db1'), flush=True)\n"
        "time.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        worker = os.pidfd_open(int(process.stdout.readline()))
        assert not select.select([worker], [], [], 0.2)[0], "it ended with the control connection's thread"
        process.kill()
    again = Running(config)
    eventually(lambda: again.status("db1").reason == "it went on", 20)
    assert not select.select([worker], [], [], 0)[0]
    again.daemon.stop()
    signal.pidfd_send_signal(worker, signal.SIGKILL)
    os.close(worker)


def test_unprotect_after_the_worker_died_takes_the_wiring_out(daemon: Running, config: HostConfig) -> None:
    daemon.others.silent = {"beta"}
    daemon.protect("db1")
    os.kill(daemon.worker_pid("db1"), signal.SIGKILL)
    eventually(lambda: daemon.status("db1").state == "held")
    daemon.unprotect("db1", peer_is_dead=True)
    assert (config.host.state_dir / "db1.taken-out").read_text() == "protected 7"
    assert daemon.status("db1").state == "unprotected"


def test_run_notifies_and_ends_on_sigterm(config: HostConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        daemon = HostDaemon(config, inspection=NoLibvirt())
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


def test_a_worker_that_is_not_understood_is_left_alone(config: HostConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of another version: it protects its VM, which the other host would take over were it ended."""
    killed: list[str] = []
    monkeypatch.setattr(WorkerLink, "kill", lambda link: killed.append(link._vm))
    put(config, "db1", role="protected", term=7, peer="beta", armed=True, wanted=True)
    config.host.run_dir.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(config.host.run_dir / "worker-db1.sock"))
        listener.listen(1)
        running = Running(config, timing=replace(FAST, linger_s=0.2))
        worker, _ = listener.accept()
        with worker:
            worker.sendall(b'{"status": {"state": "protected"}}\n')
            lines = LineChannel(worker)

            def say_nonsense() -> None:
                lines.line()
                worker.sendall(b'{"is": "done", "result": 7}\n')

            answer = threading.Thread(target=say_nonsense)
            answer.start()
            with pytest.raises(BadFrame):
                running.ask(Switchover(vm=VmName("db1")))
            answer.join()
            worker.sendall(encoded(Told(status=VmStatus(vm="db1", state="held", reason="beta is away"))) + b"\n")
            eventually(lambda: running.status("db1").state == "held")
            assert killed == []
            running.daemon.stop()
