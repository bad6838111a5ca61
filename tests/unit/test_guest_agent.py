# SPDX-License-Identifier: Apache-2.0
"""Commands in a machine: whole answers, to this question and no earlier one, and never a wait without end."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tools.machines.guest_agent import AgentError, GuestAgent

Answer = Callable[[dict[str, Any]], list[bytes]]


@contextmanager
def machine(path: Path, answer: Answer) -> Iterator[None]:
    """QEMU's end of the port: each connection is served until it is closed."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(path))
        door.listen(8)

        def serve() -> None:
            while True:
                try:
                    link, _ = door.accept()
                except OSError:
                    return
                with link, link.makefile("rb") as lines:
                    for line in lines:
                        for said in answer(json.loads(line.rpartition(b"\xff")[2])):
                            link.sendall(said)

        served = threading.Thread(target=serve)
        served.start()
        try:
            yield
        finally:
            door.shutdown(socket.SHUT_RDWR)
            served.join()


def told(value: object) -> bytes:
    return json.dumps({"return": value}).encode() + b"\n"


def synced(question: dict[str, Any]) -> bytes | None:
    if question["execute"] == "guest-sync-delimited":
        return b"\xff" + told(question["arguments"]["id"])
    return None


def test_a_command_gives_its_exit_status_and_both_outputs(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []
    looks = iter([{"exited": False}, {"exited": True, "exitcode": 3, "out-data": base64.b64encode(b"hello").decode()}])

    def answer(question: dict[str, Any]) -> list[bytes]:
        if sync := synced(question):
            return [sync]
        asked.append(question)
        return [told({"pid": 7} if question["execute"] == "guest-exec" else next(looks))]

    with machine(tmp_path / "ga", answer):
        done = GuestAgent(tmp_path / "ga").run("echo hello; exit 3", 30.0, stdin=b"\0in")
    assert (done.code, done.out, done.err) == (3, "hello", "")
    assert base64.b64decode(asked[0]["arguments"]["input-data"]) == b"\0in"


def test_an_answer_to_somebody_who_left_is_passed_over(tmp_path: Path) -> None:
    def answer(question: dict[str, Any]) -> list[bytes]:
        if sync := synced(question):
            return [b'"pid": 1}}\n', told({"pid": 99}), b"\xff" + told(-1), sync]
        return [told({})]

    with machine(tmp_path / "ga", answer):
        assert GuestAgent(tmp_path / "ga").answers()


def test_a_machine_that_says_nothing_is_waited_for_no_longer_than_said(tmp_path: Path) -> None:
    with machine(tmp_path / "ga", lambda _question: []):
        assert not GuestAgent(tmp_path / "ga").answers(timeout_s=0.2)
    assert not GuestAgent(tmp_path / "none").answers()


def test_a_refusal_is_told_in_the_agents_own_words(tmp_path: Path) -> None:
    def answer(question: dict[str, Any]) -> list[bytes]:
        if sync := synced(question):
            return [sync]
        return [b'{"error": {"class": "GenericError", "desc": "guest-exec has been disabled"}}\n']

    with machine(tmp_path / "ga", answer), pytest.raises(AgentError, match="has been disabled"):
        GuestAgent(tmp_path / "ga").run("true", 5.0)
