# SPDX-License-Identifier: Apache-2.0
"""The private QMP socket: replies find their commands, and a QEMU that breaks the rules gets an error, never belief."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt_qemu
import pytest

from remusdb.control import lines
from remusdb.errors import VmError
from remusdb.vm.monitor import LibvirtMonitor
from remusdb.vm.qmp import PrivateMonitor

LIMIT_S = 20.0
GREETING = b'{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}, "capabilities": ["oob"]}}\r\n'
EVENT = b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}\r\n'
Reply = Callable[[dict[str, Any]], bytes]


class FakeQemu:
    """Listens; greets each connection and answers each of its lines with what `reply` makes of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "qmp.sock"
        self.greeting = GREETING
        self.reply: Reply = answer
        self.asked: list[str] = []
        self.gone = threading.Event()  # the client hung up
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(4)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock, sock.makefile("rb") as stream:
                try:
                    sock.sendall(self.greeting)
                    for line in stream:
                        command = json.loads(line)
                        self.asked.append(command["execute"])
                        sock.sendall(self.reply(command))
                except (OSError, ValueError):
                    pass
            self.gone.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(LIMIT_S)
        self._listener.close()
        assert not self._thread.is_alive()


def answer(command: dict[str, Any]) -> bytes:
    return json.dumps({"return": {"ran": command["execute"]}, "id": command["id"]}).encode() + b"\r\n"


def once_connected(reply: Reply) -> Reply:
    """`reply`, for all but the first command of a connection."""
    return lambda command: (answer if command["execute"] == "qmp_capabilities" else reply)(command)


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[FakeQemu]:
    fake = FakeQemu(tmp_path)
    yield fake
    fake.close()


@pytest.fixture
def monitor(qemu: FakeQemu) -> Iterator[PrivateMonitor]:
    monitor = PrivateMonitor(qemu.path, os.getpid())
    yield monitor
    monitor.close()


def test_a_command_brings_its_return_value(qemu: FakeQemu, monitor: PrivateMonitor) -> None:
    assert monitor.execute("query-status", {}) == {"ran": "query-status"}
    assert qemu.asked == ["qmp_capabilities", "query-status"]


def test_events_before_a_reply_are_passed_over(qemu: FakeQemu, monitor: PrivateMonitor) -> None:
    qemu.reply = lambda command: EVENT * 3 + answer(command) + EVENT
    assert monitor.execute("stop", {}) == {"ran": "stop"}
    assert monitor.execute("cont", {}) == {"ran": "cont"}


def test_a_greeting_may_come_with_events(qemu: FakeQemu) -> None:
    qemu.reply = lambda command: EVENT + answer(command)
    monitor = PrivateMonitor(qemu.path, os.getpid())
    assert monitor.execute("cont", {}) == {"ran": "cont"}
    monitor.close()


def test_a_refusal_has_qemus_own_words_and_ends_nothing(qemu: FakeQemu, monitor: PrivateMonitor) -> None:
    refusal = {"class": "GenericError", "desc": "State blocked by non-migratable device"}
    qemu.reply = lambda command: json.dumps({"id": command["id"], "error": refusal}).encode() + b"\n"
    with pytest.raises(VmError, match="QEMU refuses migrate: State blocked by non-migratable device"):
        monitor.execute("migrate", {})
    qemu.reply = answer
    assert monitor.execute("cont", {}) == {"ran": "cont"}


def test_commands_of_many_threads_get_their_own_replies(monitor: PrivateMonitor) -> None:
    wrong: list[Any] = []

    def ask(name: str) -> None:
        wrong.extend(got for _ in range(50) if (got := monitor.execute(name, {})) != {"ran": name})

    threads = [threading.Thread(target=ask, args=(f"query-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert wrong == []


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"nonsense\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
        b"3\n",
        b'{"return": 1}\n',
        b'{"return": 1, "id": "1"}\n',
        b'{"return": 1, "id": 4711}\n',
        b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n',
        b'{"retu',
        EVENT + b'{"id": null}\n',
    ],
    ids=lambda stream: stream[:24].decode(errors="replace"),
)
def test_a_broken_stream_is_an_error_and_stays_one(qemu: FakeQemu, monitor: PrivateMonitor, stream: bytes) -> None:
    """After it nothing that comes is taken for a reply: it could be that of another command."""

    def reply(command: dict[str, Any]) -> bytes:
        if not stream.endswith(b"\n"):
            raise ValueError("hang up, once it is sent")
        return stream

    qemu.reply = reply
    with pytest.raises(VmError, match="query-status: the private QMP socket failed"):
        monitor.execute("query-status", {})
    qemu.reply = answer
    with pytest.raises(VmError, match="query-status: the private QMP socket failed"):
        monitor.execute("query-status", {})


@pytest.mark.parametrize("reply", [{}, {"error": "no"}, {"error": {"desc": 3}}, {"error": None}])
def test_a_reply_without_return_value_and_error_is_an_error(
    qemu: FakeQemu, monitor: PrivateMonitor, reply: dict[str, Any]
) -> None:
    qemu.reply = lambda command: json.dumps({**reply, "id": command["id"]}).encode() + b"\n"
    with pytest.raises(VmError, match="neither a return value nor an error"):
        monitor.execute("query-status", {})


def test_an_endless_line_is_cut_off(qemu: FakeQemu, monitor: PrivateMonitor) -> None:
    qemu.reply = lambda command: b'{"return": "' + b"x" * (2 * lines.MAX_LINE_BYTES) + b'"}\n'
    with pytest.raises(VmError, match=f"longer than {lines.MAX_LINE_BYTES} bytes"):
        monitor.execute("query-status", {})
    assert qemu.gone.wait(LIMIT_S)


@pytest.mark.parametrize("greeting", [b"", EVENT, b"\n", b'{"return": {}, "id": 1}\n', b"{}\n"])
def test_who_does_not_greet_as_qemu_does_is_no_monitor(qemu: FakeQemu, greeting: bytes) -> None:
    qemu.greeting = greeting
    with pytest.raises(VmError, match="does not answer"):
        PrivateMonitor(qemu.path, os.getpid(), greeting_s=0.2)
    assert qemu.gone.wait(LIMIT_S)  # and nothing of it stays open
    assert qemu.asked == []


def test_a_greeting_that_trickles_in_is_not_waited_for(tmp_path: Path) -> None:
    """The limit is of the whole greeting, not of each byte."""
    over, end = threading.Event(), time.monotonic() + LIMIT_S
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{tmp_path}/slow.sock")
    listener.listen(1)

    def serve() -> None:
        with listener.accept()[0] as sock, contextlib.suppress(OSError):
            while time.monotonic() < end:
                sock.sendall(b" ")
                time.sleep(0.02)
        over.set()

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(VmError, match="does not answer"):
        PrivateMonitor(tmp_path / "slow.sock", os.getpid(), greeting_s=0.3)
    assert over.wait(LIMIT_S)
    thread.join(LIMIT_S)
    listener.close()
    assert time.monotonic() < end


def test_a_qemu_that_refuses_the_capabilities_is_no_monitor(qemu: FakeQemu) -> None:
    qemu.reply = lambda command: json.dumps({"id": command["id"], "error": {"desc": "no"}}).encode() + b"\n"
    with pytest.raises(VmError, match="does not answer: QEMU refuses qmp_capabilities: no"):
        PrivateMonitor(qemu.path, os.getpid())


def test_another_process_that_listens_there_is_told_nothing(qemu: FakeQemu) -> None:
    """The path is from QEMU's command line, which QEMU itself can rewrite: to another VM's monitor, for one."""
    with pytest.raises(VmError, match="listens on the socket of QEMU's process"):
        PrivateMonitor(qemu.path, os.getpid() + 1)
    assert qemu.asked == []


def test_no_socket_is_no_monitor(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="does not answer"):
        PrivateMonitor(tmp_path / "nothing.sock", os.getpid())


def test_closing_ends_a_command_that_hangs(qemu: FakeQemu, monitor: PrivateMonitor) -> None:
    asked, failed = threading.Event(), []

    def silent(command: dict[str, Any]) -> bytes:
        asked.set()
        return b""

    def hang() -> None:
        try:
            monitor.execute("xen-save-devices-state", {})
        except VmError as exc:
            failed.append(str(exc))

    qemu.reply = silent
    thread = threading.Thread(target=hang)
    thread.start()
    assert asked.wait(LIMIT_S)
    monitor.close()
    thread.join(LIMIT_S)
    assert len(failed) == 1


@pytest.mark.parametrize("text", ["nonsense", "[" * 100_000, "3", "null", "{}", '{"error": {}}', '{"error": 3}'])
def test_an_answer_by_libvirt_is_not_believed_either(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommand", lambda handle, request, flags: text)
    with pytest.raises(VmError, match="query-status: QEMU's answer"):
        LibvirtMonitor(None).execute("query-status", {})  # type: ignore[arg-type, unused-ignore]


def test_libvirts_way_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(handle: object, request: str, flags: int) -> str:
        return answer({**json.loads(request), "id": 1}).decode()

    monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommand", run)
    assert LibvirtMonitor(None).execute("query-status", {}) == {"ran": "query-status"}
