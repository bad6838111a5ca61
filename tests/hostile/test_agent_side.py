# SPDX-License-Identifier: Apache-2.0
"""The other way round: an agent that says what it likes to an honest primary. It gets the project's own error, once."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remusdb import __version__
from remusdb.config import Protection, Tls
from remusdb.core.messages import Hello, Question
from remusdb.core.wire import HEADER_BYTES, FrameType
from remusdb.errors import RemusError
from remusdb.names import VmName
from remusdb.worker.spec import PeerAddress, ProtectionSpec
from tests.hostile.rig import AGENT, eventually
from tests.hostile.sayings import frame, hello, packed

NUMBERS = [(1 << 64) - 1, (1 << 64) - 2, 1 << 63, (1 << 62) + 1, -1, -(1 << 63), 1e300, "7", None, [1]]
WELCOME: dict[str, Any] = {
    "version": __version__,
    "agent": "beta",
    "term": 1,
    "committed": 0,
    "resumed": False,
    "silence_ms": 500,
    "bases": [0],
    "base_seed": 1,
    "taken": 0,
    "copy_patience_ms": 60_000,
}
DEEP = b"\x81\xa1x" + b"\x91" * 100_000 + b"\x90"
GARBAGE = [b"", b"\xc1", b"\xff" * 50, b"\x81\xa4term\xff", DEEP, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
QUESTION = Question(VmName("pg"), "gamma", 3)
STANDING: dict[str, Any] = {"vm": "pg", "term": 3, "owner": "beta", "role": "promoted", "reason": "took over"}


class LyingAgent:
    """Shows beta's certificate, greets, reads one frame, and answers with the bytes in `answer`."""

    def __init__(self, certs: Path) -> None:
        self.answer = b""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certs / "beta" / "cert.pem", certs / "beta" / "key.pem")
        self._listener = socket.create_server((AGENT, 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with contextlib.suppress(OSError), sock, self._context.wrap_socket(sock, server_side=True) as tls:
                    tls.settimeout(20)
                    tls.sendall(frame(FrameType.HEARTBEAT))
                    assert len(tls.recv(HEADER_BYTES)) > 0
                    tls.sendall(self.answer)
                    tls.settimeout(2)
                    while tls.recv(65536):
                        pass


@pytest.fixture
def liar(network: None, certs: Path) -> Iterator[LyingAgent]:
    """An agent that answers what it is told to."""
    made = LyingAgent(certs)
    yield made
    made.close()


@pytest.fixture
def spec(liar: LyingAgent, certs: Path, tmp_path: Path) -> ProtectionSpec:
    """gamma protects `pg` to the lying agent."""
    mine = certs / "gamma"
    tls = Tls(ca=mine / "ca.pem", cert=mine / "cert.pem", key=mine / "key.pem")
    return ProtectionSpec(
        vm="pg",
        host="gamma",
        libvirt_uri="test:///default",
        run_dir=tmp_path,
        state_dir=tmp_path,
        hooks_dir=tmp_path,
        peer=PeerAddress("beta", AGENT, liar.port),
        tls=tls,
        protection=Protection(connect_timeout_ms=5000),
    )


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """As many descriptors and threads as before."""

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    time.sleep(0.2)
    before = held()
    yield
    eventually(lambda: held()[0] <= before[0] + 1 and held()[1] <= before[1], f"{before} became {held()}")


def answers_to_hello() -> dict[str, bytes]:
    """Name: bytes."""
    made = {f"WELCOME {payload[:8]!r}": frame(FrameType.WELCOME, 1, 0, payload) for payload in GARBAGE}
    made |= {f"REFUSE {payload[:8]!r}": frame(FrameType.REFUSE, 1, 0, payload) for payload in GARBAGE}
    for field in ("term", "committed", "silence_ms", "copy_patience_ms", "taken", "base_seed", "bases"):
        for number in NUMBERS:
            if (field, number) != ("bases", [1]):
                made[f"WELCOME {field}={number}"] = frame(FrameType.WELCOME, 1, 0, packed({**WELCOME, field: number}))
    made["bases of 10,000 disks"] = frame(FrameType.WELCOME, 1, 0, packed({**WELCOME, "bases": [1] * 10_000}))
    made["a base of 2^62 blocks"] = frame(FrameType.WELCOME, 1, 0, packed({**WELCOME, "bases": [1 << 62]}))
    made["nothing"] = b""
    made["noise"] = os.urandom(500)
    made["16 MiB that never come"] = frame(FrameType.WELCOME, 1, 0, b"", claims=(16 << 20) - 1)
    made |= {f"a {kind.name} frame": frame(kind, 1, 1) for kind in FrameType if kind is not FrameType.HEARTBEAT}
    return made


def test_answers_to_hello(liar: LyingAgent, spec: ProtectionSpec) -> None:
    said = msgspec.convert(hello("pg", "gamma", resume=True), Hello)
    wrong: dict[str, str] = {}
    with nothing_left():
        for name, answer in answers_to_hello().items():
            liar.answer = answer
            try:
                taken = spec.agent.hello(said, 5.0)
            except RemusError:
                continue
            except Exception as exc:
                wrong[name] = f"{type(exc).__name__}: {exc}"[:200]
            else:
                taken.stream.close()
                wrong[name] = f"believed: {taken.welcome}"[:200]
    assert not wrong, wrong


def test_what_an_agent_calls_itself_and_its_term_are_not_just_believed(liar: LyingAgent, spec: ProtectionSpec) -> None:
    """A new session's term is newer than the one that was told; a resumed one's is the same."""
    wrong = {}
    with nothing_left():
        for resume, told, term in ((False, 7, 7), (False, 7, 0), (True, 7, 8), (True, 7, 6)):
            said = msgspec.convert(hello("pg", "gamma", resume=resume, term=told), Hello)
            liar.answer = frame(FrameType.WELCOME, term, 0, packed({**WELCOME, "term": term, "resumed": resume}))
            with contextlib.suppress(RemusError):
                spec.agent.hello(said, 5.0).stream.close()
                wrong[resume, told, term] = "believed"
    assert not wrong


def test_answers_to_a_question(liar: LyingAgent, spec: ProtectionSpec) -> None:
    answers = {f"{payload[:8]!r}": frame(FrameType.STANDING, 1, 0, payload) for payload in GARBAGE}
    answers |= {f"term={number}": packed({**STANDING, "term": number}) for number in NUMBERS}
    answers |= {"another VM": packed({**STANDING, "vm": "pg2"}), "another kind": frame(FrameType.ACK, 1, 1)}
    wrong = {}
    with nothing_left():
        for name, answer in answers.items():
            liar.answer = answer if answer[:4] == b"RMDB" else frame(FrameType.STANDING, 1, 0, answer)
            try:
                wrong[name] = f"believed: {spec.agent.ask(QUESTION)}"
            except RemusError:
                continue
            except Exception as exc:
                wrong[name] = f"{type(exc).__name__}: {exc}"[:200]
    assert not wrong


def test_an_honest_answer(liar: LyingAgent, spec: ProtectionSpec) -> None:
    """What the others are compared with."""
    liar.answer = frame(FrameType.WELCOME, 1, 0, packed(WELCOME))
    taken = spec.agent.hello(msgspec.convert(hello("pg", "gamma"), Hello), 5.0)
    assert taken.welcome.term == 1
    taken.stream.close()
    liar.answer = frame(FrameType.STANDING, 3, 0, packed(STANDING))
    assert spec.agent.ask(QUESTION).owner == "beta"
