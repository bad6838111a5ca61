# SPDX-License-Identifier: Apache-2.0
"""The control socket: answers, errors of their own class, and everything a client can do wrong."""

from __future__ import annotations

import json
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remusdb.control import ControlServer, LineChannel, Progress, ProgressFn, Request, call
from remusdb.control import server as server_module
from remusdb.control.api import AgentStatus, Failover, HostStatus, HostVms
from remusdb.control.codec import Done, Failed, Nothing
from remusdb.control.lines import MAX_LINE_BYTES, encoded
from remusdb.control.status import VmStatus
from remusdb.errors import BadFrame, CannotProtect, PeerUnreachable, RemusError, UsageError
from remusdb.names import VmName
from remusdb.reasons import Code, Reason


class Echoed(msgspec.Struct, frozen=True):
    """What came."""

    said: str


class Echo(Request[Echoed], frozen=True, kw_only=True):
    """Say it again."""

    said: str = "hello"


class Refuse(Request[Nothing], frozen=True, kw_only=True):
    """No."""


class Break(Request[Nothing], frozen=True, kw_only=True):
    """Fail in a way that nobody thought of."""


def echo(asked: Echo, progress: ProgressFn) -> Echoed:
    progress(Progress(step="one", done=1, total=2, unit="pages"))
    return Echoed(asked.said)


def refuse(_asked: Refuse, _progress: ProgressFn) -> Nothing:
    raise CannotProtect("vm db1 has a vhost-user device", hint="remove it")


def break_(_asked: Break, _progress: ProgressFn) -> Nothing:
    raise TimeoutError("inner")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "host.sock"


@pytest.fixture
def server(path: Path) -> Iterator[ControlServer]:
    server = ControlServer(path, {Echo: echo, Refuse: refuse, Break: break_})
    server.start()
    yield server
    server.close()


def raw(path: Path, data: bytes, *, half_close: bool = False) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        sock.sendall(data)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        reply = b""
        while chunk := sock.recv(65536):
            reply += chunk
    answer: dict[str, Any] = json.loads(reply)
    return answer


def test_an_answer_with_progress(server: ControlServer, path: Path) -> None:
    seen: list[Progress] = []
    assert call(path, Echo(said="dß1"), seen.append, timeout_s=5) == Echoed("dß1")
    assert seen == [Progress(step="one", done=1, total=2, unit="pages")]


def test_an_error_keeps_its_class_and_hint(server: ControlServer, path: Path) -> None:
    with pytest.raises(CannotProtect, match="vhost-user") as caught:
        call(path, Refuse(), timeout_s=5)
    assert caught.value.hint == "remove it"


def test_a_handler_that_breaks_is_reported_and_survived(server: ControlServer, path: Path) -> None:
    with pytest.raises(RemusError, match="the daemon failed: TimeoutError: inner"):
        call(path, Break(), timeout_s=5)
    assert call(path, Echo(), timeout_s=5) == Echoed("hello")


def test_an_unknown_op_names_the_known(server: ControlServer, path: Path) -> None:
    with pytest.raises(UsageError, match="unknown op `failover`") as caught:
        call(path, Failover(vm=VmName("db1")), timeout_s=5)
    assert caught.value.hint == "known here: break, echo, refuse"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\n",
        b"[1]\n",
        b"\xff\xfe\n",
        b'{"op": 3}\n',
        b'{"op": "echo", "said": 7}\n',
        b'{"op": "echo", "said": "x", "loud": true}\n',
        b'{"op": "echo", "args": {}}\n',
        b'{"said": "x"}\n',
        b"[" * 60_000 + b"\n",
        b"{}\n",
        b"\n",
    ],
)
def test_garbage_gets_a_clean_error(server: ControlServer, path: Path, data: bytes) -> None:
    assert raw(path, data)["id"] == UsageError.id
    assert call(path, Echo(), timeout_s=5) == Echoed("hello")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"op": "echo", "said": 7}\n', "`echo`: Expected `str`, got `int` - at `$.said`"),
        (b'{"op": "echo", "loud": 1}\n', "`echo`: Object contains unknown field `loud`"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(server: ControlServer, path: Path, data: bytes, why: str) -> None:
    assert raw(path, data)["message"] == why


def test_an_answer_may_have_keys_that_are_not_known_here(tmp_path: Path) -> None:
    """A worker outlives its daemon, and may be of another version."""
    serve_once(tmp_path / "host.sock", b'{"is": "done", "new": 1, "result": {"said": "x", "newer": 2}}\n')
    assert call(tmp_path / "host.sock", Echo(), timeout_s=5) == Echoed("x")


def test_a_request_cut_short(server: ControlServer, path: Path) -> None:
    assert "middle of a line" in raw(path, b'{"op": "ec', half_close=True)["message"]


def test_a_line_without_end_is_bounded(server: ControlServer, path: Path) -> None:
    size = server_module.MAX_REQUEST_BYTES + 1
    assert "longer than" in raw(path, b"x" * size)["message"]


def test_a_client_that_says_nothing(path: Path) -> None:
    server = ControlServer(path, {Echo: echo}, request_timeout_s=0.1)
    server.start()
    assert "no request within" in raw(path, b"")["message"]
    server.close()


def test_a_client_that_hangs_up_does_not_stop_the_work(path: Path) -> None:
    hung_up, done = threading.Event(), threading.Event()

    def slow(_asked: Echo, progress: ProgressFn) -> Echoed:
        hung_up.wait(5)
        for _ in range(3):
            progress(Progress(step="x"))
        done.set()
        return Echoed("")

    server = ControlServer(path, {Echo: slow})
    server.start()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(b'{"op": "echo"}\n')
    hung_up.set()
    assert done.wait(5)
    server.close()


def test_the_socket_is_for_root_alone(server: ControlServer, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_live_daemon_is_not_replaced(server: ControlServer, path: Path) -> None:
    with pytest.raises(RemusError, match="another daemon"):
        ControlServer(path, {}).start()
    assert call(path, Echo(), timeout_s=5) == Echoed("hello")


def test_a_stale_socket_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = ControlServer(path, {Echo: echo})
    server.start()
    assert call(path, Echo(), timeout_s=5) == Echoed("hello")
    server.close()
    assert not path.exists()


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(RemusError, match="cannot listen"):
        ControlServer(tmp_path / ("x" * 120), {}).start()
    with pytest.raises(PeerUnreachable):
        call(tmp_path / ("x" * 120), Echo())


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(PeerUnreachable, match="not running") as caught:
        call(tmp_path / "agent.sock", AgentStatus())
    assert "remusdb-agent.service" in caught.value.hint


def serve_once(path: Path, reply: bytes, hold_s: float = 0) -> threading.Thread:
    """A daemon that answers one request with these bytes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def serve() -> None:
        with listener, listener.accept()[0] as sock:
            sock.recv(65536)
            sock.sendall(reply)
            time.sleep(hold_s)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("reply", [b"", b'{"is": "progress", "step": "x"}\n'])
def test_a_daemon_that_dies(tmp_path: Path, reply: bytes) -> None:
    serve_once(tmp_path / "host.sock", reply)
    with pytest.raises(PeerUnreachable, match=r"ended before it answered|hung up"):
        call(tmp_path / "host.sock", HostStatus())


@pytest.mark.parametrize(
    "reply",
    [
        b'{"is": "done", "result": 3}\n',
        b'{"is": "done", "result": {"vms": [{}]}}\n',
        b'{"is": "no"}\n',
        b"{}\n",
        b'{"is": "done", "result": {"vms": [{"vm": "db1", "state": "odd"}]}}\n',
        b"nonsense\n",
        b'{"is',
    ],
)
def test_a_daemon_that_talks_nonsense(tmp_path: Path, reply: bytes) -> None:
    serve_once(tmp_path / "host.sock", reply)
    with pytest.raises(BadFrame):
        call(tmp_path / "host.sock", HostStatus())


def test_a_daemon_that_hangs(tmp_path: Path) -> None:
    serve_once(tmp_path / "host.sock", b"", hold_s=1)
    with pytest.raises(PeerUnreachable, match=r"did not answer `status` within 0\.1 s"):
        call(tmp_path / "host.sock", HostStatus(), timeout_s=0.1)


def test_an_answer_that_is_too_long_is_an_error_that_says_so(path: Path) -> None:
    server = ControlServer(path, {Echo: lambda _asked, _progress: Echoed("x" * (5 << 20))})
    server.start()
    with pytest.raises(RemusError, match="too long") as caught:
        call(path, Echo(), timeout_s=20)
    assert "one VM" in caught.value.hint
    server.close()


def test_the_status_of_hundreds_of_vms_fits_into_an_answer() -> None:
    why = Reason.of(Code.ERROR, why="w" * (15 << 20), hint="h" * (1 << 20), error="E-VM")
    endless = VmStatus(
        vm="v" * 200, reason="r" * (15 << 20), why=why, hint="h" * (15 << 20), unproven="ü" * (1 << 20),
        clock_slow="\x1b" * 9999, weakness="\u20ac" * 9999,
    )  # fmt: skip
    assert len(encoded(Done.by(HostVms(vms=[endless] * 400)))) < MAX_LINE_BYTES


def test_several_lines_in_one_read() -> None:
    left, right = socket.socketpair()
    left.sendall(b'{"a": 1}\n{"b": 2}\n')
    left.close()
    channel = LineChannel(right)
    assert [channel.receive(), channel.receive(), channel.receive()] == [{"a": 1}, {"b": 2}, None]
    channel.close()


def test_a_vms_name_is_told_as_it_is() -> None:
    """By it the words of both daemons are put together: a tab that became a space made two VMs of one."""
    assert VmStatus(vm='a\t"b"', state="protected").vm == 'a\t"b"'


@pytest.mark.parametrize("kind", [RemusError, UsageError, CannotProtect, PeerUnreachable])
def test_an_error_comes_out_as_what_it_went_in(kind: type[RemusError]) -> None:
    error = Failed.by(kind("why", hint="what to do")).error()
    assert (type(error), str(error), error.hint) == (kind, "why", "what to do")
