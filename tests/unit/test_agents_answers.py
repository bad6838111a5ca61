# SPDX-License-Identifier: Apache-2.0
"""What a primary believes of an agent's answers: a bad one leaves no connection, fences nobody and ends nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remusdb.config import Protection, Tls
from remusdb.core.messages import Capabilities, Hello, Notice, Question, Refuse, Standing, Welcome, pack
from remusdb.core.probe import Probe
from remusdb.core.wire import ANSWERS, FROM_AGENT, Frame, FrameType
from remusdb.errors import BadFrame, CannotProtect, ConfigError, Fenced, NoStandby, PeerRefused, PeerUnreachable
from remusdb.names import VmName
from remusdb.transport.agent_client import Agent, AgentBehind, Greeting
from remusdb.worker.agent_link import AgentLink
from remusdb.worker.spec import PeerAddress, ProtectionSpec

UUID = "0f3c1a52-8f0e-4d0a-9b60-3f1c2d4e5a6b"
HERE = Path()
SPEC = ProtectionSpec("pg", "alpha", "", HERE, HERE, HERE, PeerAddress("beta", "192.0.2.2", 1), Tls(), Protection())
FRESH = Hello("0", "alpha", VmName("pg"), UUID, 7, False, 0, "q35", "<domain/>", [], [], 100, "10")
QUESTION = Question(VmName("pg"), "alpha", 7)
RESUME = msgspec.structs.replace(FRESH, resume=True)
WELCOME = Welcome("0", "beta", 8, 0, False, 500)
RESUMED = Welcome("0", "beta", 7, 3, True, 500)

Said = Frame | None | Exception


def frame(kind: FrameType, message: msgspec.Struct | bytes = b"", term: int = 7) -> Frame:
    return Frame(kind, term, 0, message if isinstance(message, bytes) else pack(message))


class Stream:
    """A connection on which `says` comes, and then nothing."""

    def __init__(self, *says: Said) -> None:
        self.says = list(says)
        self.allowed: Any = ()
        self.closed = threading.Event()
        self.sent: list[FrameType] = []

    @property
    def last_heard(self) -> float:
        return time.monotonic()

    def receive(self, timeout_s: float | None) -> Frame | None:
        if self.closed.is_set():
            raise PeerUnreachable("closed")
        said = self.says.pop(0) if self.says else None
        if said is None:
            time.sleep(min(timeout_s or 0.01, 0.01))
        if isinstance(said, Exception):
            raise said
        return said

    def send(self, kind: FrameType, _term: int, _epoch: int, _payload: bytes = b"") -> None:
        self.sent.append(kind)

    def close(self, drain_s: float = 0.0) -> None:
        self.closed.set()


def saying(*says: Said) -> tuple[Agent, Stream]:
    """An agent, and the connection that one gets with it, on which this is said."""
    stream: Any = Stream(*says)
    return replace(SPEC.agent, dial=lambda _agent, _within_s: stream), stream


def test_a_good_answer_is_taken_after_heartbeats() -> None:
    for hello, welcome in ((FRESH, WELCOME), (RESUME, RESUMED)):
        agent, stream = saying(
            frame(FrameType.HEARTBEAT), frame(FrameType.HEARTBEAT), frame(FrameType.WELCOME, welcome)
        )
        assert agent.hello(hello).welcome == welcome
        assert not stream.closed.is_set() and stream.allowed == FROM_AGENT


BAD_ANSWERS = {
    "resumes what is to begin": (FRESH, RESUMED),
    "begins what is to be resumed": (RESUME, msgspec.structs.replace(WELCOME, term=7)),
    "resumes another session": (RESUME, msgspec.structs.replace(RESUMED, term=8)),
    "resumes an older session": (RESUME, msgspec.structs.replace(RESUMED, term=6)),
    "begins in the same term": (FRESH, msgspec.structs.replace(WELCOME, term=7)),
    "begins in term 0": (FRESH, msgspec.structs.replace(WELCOME, term=0)),
    "begins with epochs": (FRESH, msgspec.structs.replace(WELCOME, committed=1)),
    "begins with a copy": (FRESH, msgspec.structs.replace(WELCOME, taken=1)),
    "of a term that is none": (FRESH, msgspec.structs.replace(WELCOME, term=2**63)),
    "of a negative term": (FRESH, msgspec.structs.replace(WELCOME, term=-1)),
    "of silence for ever": (FRESH, msgspec.structs.replace(WELCOME, silence_ms=10**9)),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS)
def test_a_welcome_that_is_no_answer_is_refused(answer: str) -> None:
    hello, welcome = BAD_ANSWERS[answer]
    agent, stream = saying(frame(FrameType.WELCOME, welcome))
    with pytest.raises(BadFrame):
        agent.hello(hello)
    assert stream.closed.is_set()


@pytest.mark.parametrize("payload", [b"", b"\xff", b"\x81\xa5agent\xa2\xff\xfe", b"\x81\xa1z" + b"\x91" * 100_000])
@pytest.mark.parametrize("kind", [FrameType.WELCOME, FrameType.REFUSE])
def test_an_answer_that_cannot_be_read_leaves_no_connection(kind: FrameType, payload: bytes) -> None:
    agent, stream = saying(frame(kind, payload))
    with pytest.raises(BadFrame):
        agent.hello(FRESH)
    assert stream.closed.is_set() and stream.allowed == ANSWERS


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (frame(FrameType.WELCOME, msgspec.structs.replace(WELCOME, silence_ms=1)), ConfigError),
        (PeerUnreachable("reset"), PeerUnreachable),
        (KeyError("a bug"), KeyError),
        (frame(FrameType.REFUSE, Refuse("no", code="preflight")), CannotProtect),
        (frame(FrameType.REFUSE, Refuse("no", code="what is this")), PeerRefused),
        (frame(FrameType.REFUSE, Refuse("no", code="behind")), AgentBehind),
        (frame(FrameType.REFUSE, Refuse("no", term=8, fenced=True)), Fenced),
        (frame(FrameType.REFUSE, Refuse("no", term=6, fenced=True)), BadFrame),
        (frame(FrameType.REFUSE, Refuse("no", renounced=True)), NoStandby),
    ],
)
def test_no_error_leaves_a_connection(said: Said, error: type[Exception]) -> None:
    agent, stream = saying(said)
    with pytest.raises(error) as caught:
        agent.hello(FRESH)
    assert stream.closed.is_set() and type(caught.value) is error


def test_the_standing_of_another_vm_is_not_believed() -> None:
    """By it, a VM would be destroyed here that nobody else has."""
    for vm in ("other", "PG", "pg "):
        agent, stream = saying(frame(FrameType.STANDING, Standing(VmName(vm), 9, "beta", "promoted", "took over")))
        with pytest.raises(BadFrame, match="speaks of another"):
            agent.ask(QUESTION)
        assert stream.closed.is_set()
    good = Standing(VmName("pg"), 9, "beta", "promoted", "took over")
    agent, _ = saying(frame(FrameType.STANDING, good))
    assert agent.ask(QUESTION) == good
    agent, _ = saying(frame(FrameType.REFUSE, Refuse("you are not listed", "list it")))
    with pytest.raises(PeerRefused, match="not listed"):
        agent.ask(QUESTION)
    for unreadable in (b"", b"\x81\xa2vm\xa1\xff"):
        agent, stream = saying(frame(FrameType.STANDING, unreadable))
        with pytest.raises(BadFrame):
            agent.ask(QUESTION)
        assert stream.closed.is_set()


def test_an_agent_says_what_it_can_run_or_why_it_wants_nobody() -> None:
    capabilities = Capabilities("1", (9, 0, 0), (9, 0, 0), ["pc-q35-8.2"])
    agent, stream = saying(frame(FrameType.PROBE, capabilities))
    assert agent.probe(Probe("<domain/>")) == capabilities
    assert stream.closed.is_set() and stream.allowed == (FrameType.PROBE, FrameType.REFUSE)
    refuse = Refuse("you are not listed", "list it", code="preflight")
    agent, _ = saying(frame(FrameType.REFUSE, refuse))
    assert agent.probe(Probe("<domain/>")) == refuse


@pytest.mark.parametrize("unreadable", [b"", b"\xc1", b"\x81\xa7version\xa1\xff"])
@pytest.mark.parametrize("kind", [FrameType.PROBE, FrameType.REFUSE])
def test_what_an_agent_can_run_is_an_answer_or_an_error(kind: FrameType, unreadable: bytes) -> None:
    agent, stream = saying(frame(kind, unreadable))
    with pytest.raises(BadFrame):
        agent.probe(Probe("<domain/>"))
    assert stream.closed.is_set()


QUESTIONS: list[Callable[[Agent], object]] = [
    lambda agent: agent.hello(RESUME),
    lambda agent: agent.ask(QUESTION),
    lambda agent: agent.probe(Probe("<domain/>")),
]


@pytest.mark.parametrize("question", QUESTIONS, ids=["hello", "ask", "probe"])
def test_an_agent_that_says_nothing_is_unreachable(question: Callable[[Agent], object]) -> None:
    agent, stream = saying()
    with pytest.raises(PeerUnreachable, match="beta"):
        question(agent)
    assert stream.closed.is_set()


class Listening:
    """The session's side of a peer; `resume` is what it does with a connection that is resumed."""

    def __init__(self, resume: Callable[[], None] = lambda: None) -> None:
        self.told: list[str] = []
        self._resume = resume
        self.resumed = threading.Event()
        self.over = threading.Event()

    def may_be_replaced(self) -> bool:
        return True

    def on_ack(self, _term: int, epoch: int, _applied: int | None) -> None:
        self.told.append("ack")
        if epoch > 3:
            raise BadFrame("it was never cut")

    def on_lost(self, _reason: str) -> None:
        self.told.append("lost")

    def on_resumed(self, _stream: Any, _welcome: Welcome) -> None:
        self._resume()
        self.told.append("resumed")
        self.resumed.set()

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Anything else that a listener is told ends the session."""

        def tell(*_args: object) -> None:
            self.told.append(name)
            self.over.set()

        return tell


Run = Callable[[Listening, Stream, list[Stream]], None]


@pytest.fixture
def run() -> Iterator[Run]:
    """A peer on a first connection, to which the agent then says WELCOME on each of the others; the last one stays."""
    peers = []

    def run(listening: Listening, first: Stream, again: list[Stream]) -> None:
        given = iter(again)

        class Again(Agent):
            def hello(self, hello: Hello, try_s: float | None = None) -> Greeting:
                stream: Any = next(given, None)
                if stream is None:
                    raise PeerUnreachable("nobody")
                return Greeting(stream, RESUMED)

        untyped: Any = listening
        peers.append(AgentLink(SPEC, lambda: RESUME, untyped, Again("beta", "192.0.2.2", 1, Tls(), Protection())))
        stream: Any = first
        peers[-1].start(Greeting(stream, WELCOME))

    yield run
    for peer in peers:
        peer.close()


BAD_FRAMES = {
    "an ack of what was never cut": Frame(FrameType.ACK, 8, 9, b""),
    "an ack whose payload cannot be read": Frame(FrameType.ACK, 8, 1, b"\x81\xa7applied\xff"),
    "no UTF-8": frame(FrameType.RENOUNCE, b"\x81\xa6reason\xa2\xff\xfe"),
    "deep": frame(FrameType.PROOF, b"\x81\xa1z" + b"\x91" * 100_000),
    "a refusal that cannot be read": frame(FrameType.REFUSE, b"\xc1"),
    "fenced by an older term": frame(FrameType.REFUSE, Refuse("no", term=7, fenced=True)),
    "taken, a negative number": frame(FrameType.TAKEN, b"\x81\xa6frames\xff"),
    "hashes of no disk": frame(FrameType.BASE, b"\x83\xa4disk\xcc\xff\xa5first\x00\xa6hashes\xc4\x00"),
    "what no agent sends": frame(FrameType.COMMIT, Notice("x")),
}


@pytest.mark.parametrize("what", BAD_FRAMES)
def test_a_bad_frame_in_a_session_is_a_lost_connection_and_no_more(run: Run, what: str) -> None:
    first, second = Stream(BAD_FRAMES[what]), Stream()
    listening = Listening()
    run(listening, first, [second])
    assert listening.resumed.wait(20), listening.told
    assert first.closed.is_set() and not second.closed.is_set()
    assert [told for told in listening.told if told != "ack"] == ["lost", "resumed"]


@pytest.mark.parametrize("error", [BadFrame("it holds less than it said"), Fenced("the session is solo")])
def test_a_session_that_is_not_resumed_closes_that_connection_and_tries_on(run: Run, error: Exception) -> None:
    """A session that is over by the arbiter's word was once fenced by its agent's return: its VM was quarantined."""
    errors = [error, error]

    def resume() -> None:
        if errors:
            raise errors.pop()

    first, bad, worse, good = Stream(PeerUnreachable("cut")), Stream(), Stream(), Stream()
    listening = Listening(resume)
    run(listening, first, [bad, worse, good])
    assert listening.resumed.wait(20), listening.told
    assert bad.closed.is_set() and worse.closed.is_set() and not good.closed.is_set()
    assert listening.told == ["lost", "resumed"]


@pytest.mark.slow
def test_an_agent_with_bad_answers_alone_is_asked_ever_more_slowly(run: Run) -> None:
    """Each time is a line in log and history, and runs the hooks."""
    says = (Frame(FrameType.ACK, 7, 1, b""), frame(FrameType.REFUSE, b"\xc1"))  # also where it acknowledges in between
    listening = Listening()
    run(listening, Stream(*says), [Stream(*says) for _ in range(1000)])
    time.sleep(2)
    assert 3 <= listening.told.count("lost") < 20, "it was 50 a second"
    assert not listening.over.is_set()
