# SPDX-License-Identifier: Apache-2.0
"""A worker's channel to the daemon that started it, and to the ones after it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from remusdb.control.codec import Done, Nothing, plain
from remusdb.control.status import VmStatus
from remusdb.worker.commands import Channel
from remusdb.worker.spec import Told


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
