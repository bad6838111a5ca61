# SPDX-License-Identifier: Apache-2.0
"""A worker's channel to the daemon that started it, and to the ones after it."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from remusdb.config import Protection, Tls
from remusdb.control.codec import Done, Nothing, plain
from remusdb.control.status import VmStatus
from remusdb.worker.commands import Channel, Worker
from remusdb.worker.session import Session
from remusdb.worker.spec import End, PeerAddress, ProtectionSpec, Start, Told
from tests.waiting import LIMIT_S, eventually


def lines(sock: socket.socket) -> list[object]:
    sock.settimeout(0.2)
    data = b""
    try:
        while part := sock.recv(4096):
            data += part
    except TimeoutError:
        pass
    return [json.loads(line) for line in data.splitlines()]


def test_an_answer_goes_to_the_daemon_that_asked(tmp_path: Path) -> None:
    first, theirs = socket.socketpair()
    channel = Channel(theirs, tmp_path / "worker.sock")
    asker = channel.daemon
    channel.tell(Done.by(Nothing(), "a"), only_to=asker)
    assert lines(first) == [{"is": "done", "of": "a", "result": {}}]
    first.close()
    channel.read(lambda _message: True)
    second = socket.socket(socket.AF_UNIX)
    second.connect(str(tmp_path / "worker.sock"))
    assert channel.next_daemon(20)
    channel.tell(Done.by(Nothing(), "start"), only_to=asker)
    status = VmStatus(vm="db1", state="protected")
    channel.tell(Told(status=status))
    channel.tell(Done.by(Nothing(), "b"), only_to=channel.daemon)
    assert lines(second) == [{"is": "status", "status": plain(status)}, {"is": "done", "of": "b", "result": {}}]
    second.close()
    channel.read(lambda _message: True)
    channel.close()


def test_a_command_that_follows_start_is_about_its_session_however_soon(tmp_path: Path) -> None:
    """The host daemon begins a session by itself; an operator's `unprotect` may come in that moment."""
    daemon, theirs = socket.socketpair()
    channel = Channel(theirs, tmp_path / "worker.sock")
    ended = threading.Event()
    done: list[str] = []

    def unprotect(_peer_is_dead: bool) -> None:
        done.append("unprotected")
        ended.set()

    session: Any = SimpleNamespace(
        ended=ended,
        where=dict,
        start=lambda: None,
        protect=lambda: ended.wait(LIMIT_S),
        unprotect=unprotect,
        status=lambda: VmStatus(vm="db1"),
    )

    def slow(*_: object) -> Session:
        time.sleep(0.3)
        return session  # type: ignore[no-any-return]

    worker = Worker(channel, slow)
    peer = PeerAddress("beta", "192.0.2.2", 1)
    spec = ProtectionSpec("db1", "alpha", "", tmp_path, tmp_path, tmp_path, peer, Tls(), Protection())
    worker.take(Start(spec=spec))
    worker.take(End(peer_is_dead=False))
    eventually(lambda: done == ["unprotected"])
    answers = [json.loads(daemon.makefile("rb").readline())]
    assert all("error" not in answer for answer in answers)
    channel.close()
    daemon.close()
