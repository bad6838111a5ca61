# SPDX-License-Identifier: Apache-2.0
"""A worker's channel to the daemon that started it, and to the ones after it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from remusdb.worker.orders import Channel


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
    channel.tell(only_to=asker, op="a", result={})
    assert lines(first) == [{"op": "a", "result": {}}]
    first.close()
    channel.read(lambda _message: True)
    second = socket.socket(socket.AF_UNIX)
    second.connect(str(tmp_path / "worker.sock"))
    assert channel.next_daemon(20)
    channel.tell(only_to=asker, op="start", result={})
    channel.tell(status={"state": "protected"})
    channel.tell(only_to=channel.daemon, op="b", result={})
    assert lines(second) == [{"status": {"state": "protected"}}, {"op": "b", "result": {}}]
    second.close()
    channel.read(lambda _message: True)
    channel.close()
