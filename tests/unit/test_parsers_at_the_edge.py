# SPDX-License-Identifier: Apache-2.0
"""Control lines, configurations and histories of any bytes: read, or the project's own error."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from remusdb.cli.main import cli
from remusdb.config import load_host
from remusdb.control import ControlServer, LineChannel, Request, call
from remusdb.control.api import HostStatus, HostVms
from remusdb.errors import BadFrame, ConfigError, NoThread, UsageError
from remusdb.history import Event, History, append, read
from remusdb.tomlstruct import read_toml
from remusdb.worker.commands import Channel, Worker
from remusdb.worker.spec import COMMANDS, Stop
from remusdb_agents.backup.disks.base_copy import QuarantinedDisk, fits
from tests.unit.odd_bytes import DEEP, LINES

# --- control lines ---


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_control_line_is_an_object_or_a_bad_frame(line: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(line + b"\n")
        theirs.shutdown(socket.SHUT_WR)
        try:
            assert isinstance(LineChannel(ours).receive(), dict)
        except BadFrame:
            pass


@pytest.mark.parametrize("line", [LINES["not UTF-8"], LINES["deep"][:60_000], LINES["a list"]])
def test_a_request_that_cannot_be_read_is_answered(tmp_path: Path, line: bytes) -> None:
    server = ControlServer(tmp_path / "host.sock", {HostStatus: lambda _asked, _progress: HostVms(vms=[])})
    server.start()
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(tmp_path / "host.sock"))
            sock.sendall(line + b"\n")
            assert json.loads(sock.makefile("rb").readline())["id"] == UsageError.id
        assert call(tmp_path / "host.sock", HostStatus()) == HostVms(vms=[])
    finally:
        server.close()


def worker_and_daemon(tmp_path: Path) -> tuple[Channel, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    return Channel(theirs, tmp_path / "worker.sock"), ours


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_worker_answers_what_it_does_not_understand_and_hears_on(tmp_path: Path, line: bytes) -> None:
    channel, daemon = worker_and_daemon(tmp_path)
    heard: list[Request[Any]] = []
    with daemon:
        daemon.sendall(line + b'\n{"op": "stop"}\n')

        def takes(command: Request[Any]) -> bool:
            heard.append(command)
            return command != Stop()

        channel.read(takes)
        assert heard == [Stop()]
        assert json.loads(daemon.makefile("rb").readline())["id"] == UsageError.id
    channel.close()


def test_a_worker_hangs_up_on_a_line_without_end_and_hears_the_next_daemon(tmp_path: Path) -> None:
    channel, daemon = worker_and_daemon(tmp_path)

    def tell() -> None:
        try:
            daemon.sendall(b'{"x": "' + b"x" * (64 << 20))
        except OSError:
            pass  # it hung up in the middle

    telling = threading.Thread(target=tell)
    telling.start()
    channel.read(lambda _message: True)
    telling.join(20)
    daemon.close()
    heard: list[Request[Any]] = []
    with socket.socket(socket.AF_UNIX) as second:
        second.connect(str(tmp_path / "worker.sock"))
        assert channel.next_daemon(20)
        second.sendall(b'{"op": "stop"}\n')

        def takes(command: Request[Any]) -> bool:
            heard.append(command)
            return False

        channel.read(takes)
    assert heard == [Stop()]
    channel.close()


def test_an_order_for_which_there_is_no_thread_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    channel, daemon = worker_and_daemon(tmp_path)

    def no_thread(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with daemon:
        daemon.sendall(b'{"op": "unprotect", "peer_is_dead": false}\n{"op": "x"}\n')
        daemon.shutdown(socket.SHUT_WR)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", no_thread)
            channel.read(Worker(channel).take)
        told = daemon.makefile("rb")
        answers = [json.loads(told.readline()) for _ in range(2)]
    assert [answer["id"] for answer in answers] == [NoThread.id, UsageError.id]
    assert "can't start new thread" in answers[0]["message"]
    channel.close()


# --- files ---


@pytest.mark.parametrize(
    "text",
    [b"a = " + DEEP, b"a = " + b"1" * 5000, b"\xff", b"\0", b'a = "\\ud800"', b"[a]\n[a]", b"a = 1979-99-99", b"a"],
    ids=["deep", "digits", "not UTF-8", "NUL", "surrogate", "twice", "date", "cut off"],
)
def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "host.toml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=str(path)):
        read_toml(path)


def test_a_path_that_no_file_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    path.write_text('[host]\nname = "a"\nstate_dir = "/var\\u0000lib"\n')
    with pytest.raises(ConfigError, match=r"host\.state_dir"):
        load_host(path)


def event(**changes: Any) -> Event:
    plain: dict[str, Any] = {
        "vm": "vm", "at_ns": 1, "host": "a", "by": "host", "event": "held", "was": "x", "now": "y", "reason": "because",
        "term": 1, "epoch": 1, "heard_ms_ago": 1.0, "peer": "b",
    }  # fmt: skip
    return Event(**plain | changes)


def test_a_history_with_lines_of_all_kinds_tells_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "history"
    append(folder, event(reason="first"))
    with (folder / "vm.jsonl").open("ab") as file:
        for line in LINES.values():
            file.write(line + b"\n")
        plain = json.loads((folder / "vm.jsonl").read_bytes().split(b"\n")[0])
        for field, value in {"details": [], "at_ns": 1 << 70,
                             "term": -1, "heard_ms_ago": "x", "event": "x", "reason": 7}.items():  # fmt: skip
            file.write(json.dumps(plain | {field: value}).encode() + b"\n")
        file.write(b'{"vm": "vm", "x": ' + DEEP + b"}\n")
    append(folder, event(reason="last"))
    assert [one.reason for one in read(tmp_path, "vm")] == ["first", "last"]


def test_a_moment_that_no_calendar_has_is_no_event(tmp_path: Path) -> None:
    (tmp_path / "history").mkdir()
    lines = [json.dumps(json.loads(msgspec.json.encode(event())) | {"at_ns": at, "heard_ms_ago": ago})
             for at in (0, 1 << 62, (1 << 63) - 1, -1, -(1 << 63)) for ago in (1.0, 1e300, -1e300, None)]  # fmt: skip
    (tmp_path / "history" / "vm.jsonl").write_text("\n".join(lines) + "\n")
    done = CliRunner().invoke(cli, ["history", "vm", "--state-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output


def test_a_long_reason_costs_no_older_event(tmp_path: Path) -> None:
    folder = tmp_path / "history"
    for number in range(9):
        append(folder, event(reason=str(number)))
    pen = History(tmp_path, None)
    pen.record(event(reason="x" * (15 << 20), peer="p" * (1 << 20), details={"a": "y" * (5 << 20)}))
    pen.record(event(reason="after"))
    assert pen.flush(20)
    found = read(tmp_path, "vm")
    assert [one.reason for one in found if len(one.reason) < 9] == [*map(str, range(9)), "after"]
    assert len(found) == 11 and (folder / "vm.jsonl").stat().st_size < 100_000


def test_a_line_without_end_costs_no_older_event(tmp_path: Path) -> None:
    """As a power cut, or a disk that lies, may leave it."""
    folder = tmp_path / "history"
    for number in range(200):
        append(folder, event(reason=str(number)))
    with (folder / "vm.jsonl").open("ab") as file:
        file.write(b"\0" * (5 << 20))
    append(folder, event(reason="after"))
    assert [one.reason for one in read(tmp_path, "vm")] == [*map(str, range(200)), "after"]
    assert (folder / "vm.jsonl").stat().st_size < 4 << 20


@pytest.mark.parametrize("spec", [{}, {"vm": 7}, {"vm": "db1", "protection": []}, {"vm": "x", "run_dir": 7}, "x"])
def test_a_spec_that_is_none_is_refused(spec: object) -> None:
    with pytest.raises(UsageError, match="`start`: "):
        COMMANDS.read(json.dumps({"op": "start", "spec": spec}).encode())


@pytest.mark.parametrize(
    "head", [b"", b"x", b"QFI\xfb", b"QFI\xfb" + bytes(75), b"QFI\xfb" + b"\xff" * 200, bytes(104)]
)
def test_a_kept_disk_whose_header_is_nonsense_is_not_used(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "vda.qcow2").write_bytes(head)
    assert not fits(QuarantinedDisk(tmp_path / "vda.qcow2", "qcow2"), 1 << 20)
