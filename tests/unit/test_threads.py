# SPDX-License-Identifier: Apache-2.0
"""No thread can be had: whoever wanted one says so and goes on, or the process ends; it is never alive and deaf."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from remusdb import hooks as hooks_module
from remusdb import threads
from remusdb.capture import pauses
from remusdb.config import HostConfig
from remusdb.control import ControlServer, call
from remusdb.control import server as server_module
from remusdb.control.api import Prepare, Prepared
from remusdb.core.ownership import Claim, Verdict
from remusdb.core.primary_effects import AskArbiter
from remusdb.core.primary_events import ArbiterSaid
from remusdb.disk.writelog import WriteLog
from remusdb.errors import DiskError, NoThread
from remusdb.hooks import Hooks
from remusdb.host import reconciler as tender_module
from remusdb.names import VmName
from remusdb.vm.blocking import BlockingCalls
from remusdb.worker.commands import Channel, Worker
from remusdb.worker.mailbox import Mailbox
from remusdb.worker.performer import Performer
from remusdb.worker.spec import End
from remusdb_agents.backup.standby.definition import Definition
from tests.unit.host_daemon_rig import Running, put
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
WITHIN_S = 30.0
NoThreads = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> NoThreads:
    """While it is entered, the kernel gives this process no thread, one may say."""

    @contextmanager
    def none() -> Iterator[None]:
        def start(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            yield

    return none


def test_an_error_of_ours(no_threads: NoThreads) -> None:
    with no_threads(), pytest.raises(NoThread, match="thread `x` cannot be started: can't start") as caught:
        threads.spawn(print, name="x")
    assert "TasksMax" in caught.value.hint


def test_what_must_be_done_is_done(no_threads: NoThreads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "PATIENCE_S", 0.1)
    done: list[threading.Thread] = []
    work = lambda: done.append(threading.current_thread())  # noqa: E731
    thread = threads.apart(work, name="apart")
    assert thread is not None
    thread.join(WITHIN_S)
    with no_threads():
        assert threads.apart(work, name="apart") is None
    assert done == [thread, threading.current_thread()]


VITAL = """
import sys, threading, time
from remusdb.log import setup
from remusdb.threads import vital
setup()
vital(lambda: {}["nothing"], name="accept")
time.sleep(60)
"""


def test_a_vital_thread_takes_the_process_with_it() -> None:
    done = subprocess.run([sys.executable, "-c", VITAL], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == threads.DEAF_EXIT_CODE
    assert "thread `accept` died" in done.stderr and "KeyError" in done.stderr


def test_no_thread_is_started_but_here() -> None:
    """The whole kind: a bare `Thread.start()` raises what nobody catches."""
    bare = re.compile(r"Thread\([^\n]*\)\.start\(\)|\bthread\w*\.start\(\)", re.IGNORECASE)
    for folder in ("remusdb", "agents"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "threads.py":
                assert not bare.search(path.read_text()), path


def test_a_control_socket_says_so_and_answers_again(tmp_path: Path, no_threads: NoThreads) -> None:
    server = ControlServer(tmp_path / "host.sock", {Prepare: lambda asked, _progress: Prepared(changes=[asked.vm])})
    server.start()
    asked = Prepare(vm=VmName("db1"))
    with no_threads():
        for _ in range(2 * server_module.MAX_CONNECTIONS):  # no slot is lost
            with pytest.raises(NoThread, match="control-request"):
                call(tmp_path / "host.sock", asked, timeout_s=WITHIN_S)
    assert call(tmp_path / "host.sock", asked, timeout_s=WITHIN_S).changes == ["db1"]
    server.close()


def test_a_control_socket_without_a_thread_to_accept_is_none(tmp_path: Path, no_threads: NoThreads) -> None:
    server = ControlServer(tmp_path / "host.sock", {})
    with no_threads(), pytest.raises(NoThread):
        server.start()
    assert not (tmp_path / "host.sock").exists()
    server.start()
    server.close()


def test_a_worker_answers_the_order_and_goes_on(tmp_path: Path, no_threads: NoThreads) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs, tmp_path / "worker.sock")
    worker = Worker(channel)
    with no_threads():
        assert worker.take(End(peer_is_dead=True))
    ours.settimeout(WITHIN_S)
    told = json.loads(ours.recv(65536))
    assert (told["is"], told["of"], told["id"]) == ("failed", "unprotect", "E-THREADS")
    assert worker._idle()
    channel.close()
    ours.close()
    theirs.close()


def test_a_vm_is_tended_again_later(config: HostConfig, no_threads: NoThreads, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[str] = []

    def spawn(work: Callable[..., object], *args: object, name: str) -> threading.Thread:
        if len(refused) < 2:
            refused.append(name)
            raise NoThread("none")
        return threads.spawn(work, *args, name=name)

    monkeypatch.setattr(tender_module, "spawn", spawn)
    put(config, "db1", role="protected", term=7, peer="beta", armed=True, wanted=True)
    running = Running(config)
    eventually(lambda: running.status("db1").state == "protected")
    assert refused == ["reconcile-db1"] * 2
    running.daemon.stop()


def test_a_write_log_fails_as_it_does_otherwise(
    tmp_path: Path, no_threads: NoThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")  # nbdkit need not be here for this
    log = WriteLog(tmp_path, 0, 1 << 20)
    with no_threads(), pytest.raises(DiskError, match="can't start new thread"):
        log.start()
    assert not list(tmp_path.iterdir())


def test_hooks_wait_for_a_thread(tmp_path: Path, no_threads: NoThreads) -> None:
    hook, out = tmp_path / "hook", tmp_path / "out"
    hook.write_text(f"#!/bin/sh\necho $REMUSDB_VM >> {out}\n")
    hook.chmod(0o700)
    hooks = Hooks(tmp_path)
    from tests.unit.test_history import event

    with no_threads():
        hooks.run(event(vm="early"))
    hooks.run(event(vm="late"))
    assert hooks.wait_idle(WITHIN_S)
    assert sorted(out.read_text().split()) == ["early", "late"]
    assert hooks_module.AT_ONCE >= hooks._threads >= 0


def test_a_call_that_had_no_thread_is_never_made(no_threads: NoThreads) -> None:
    """A pool keeps what it had no thread for: it would stop the VM some time later, with nobody there any more."""
    calls = BlockingCalls(WITHIN_S)
    made: list[str] = []
    with no_threads(), pytest.raises(NoThread):
        calls.start(made.append, "late")
    calls.call("later", made.append, "later")
    time.sleep(0.1)
    assert made == ["later"]
    calls.close()


def test_libvirts_events_are_heard_after_all(no_threads: NoThreads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "_loop", None)
    monkeypatch.setattr(pauses, "_run", lambda: None)
    with no_threads(), pytest.raises(NoThread):
        pauses.start_event_loop()
    pauses.start_event_loop()
    assert pauses._loop is not None


def test_the_definition_of_a_running_vm_is_given_up_not_the_vm(
    no_threads: NoThreads, caplog: pytest.LogCaptureFixture
) -> None:
    with no_threads():
        Definition("test:///default", "db1", "<domain/>", False).keep()
    assert "db1 could not be defined" in caplog.text


def test_whether_to_go_on_alone_needs_no_thread_at_the_time(no_threads: NoThreads) -> None:
    """The session's own thread asks, when no other can be had."""
    asked = threading.Event()

    def claim(*_: object) -> Claim:
        asked.set()
        return Claim(Verdict.UNREACHED, None)

    arbiter: Any = SimpleNamespace(claim=claim)
    spec: Any = SimpleNamespace(vm="pg", host="alpha")
    nothing: Any = None
    mailbox = Mailbox()
    over, ended = threading.Event(), threading.Event()
    performer = Performer(spec, nothing, nothing, nothing, nothing, mailbox, arbiter, over, ended, nothing)
    with no_threads():
        performer.perform(AskArbiter(5))
    assert asked.is_set() and mailbox.take().event == ArbiterSaid(Claim(Verdict.UNREACHED, None))
