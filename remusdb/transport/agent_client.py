# SPDX-License-Identifier: Apache-2.0
"""How one speaks with an agent: a session (`hello`), who owns a VM (`ask`), what its host can run (`probe`).

Invariant: whatever the agent answers, or does not, either there is an answer to what was said, within its bounds, or an
error; and no connection is left but that of a session. An answer that cannot be is BadFrame, which fences nobody and
releases nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from remusdb.config import Protection, Tls, check_copy_patience, check_silence
from remusdb.core.messages import Capabilities, Hello, Question, Refuse, Standing, Welcome, pack, unpack
from remusdb.core.probe import Probe
from remusdb.core.terms import HELLO_JUMP_MAX, JUMP_MAX
from remusdb.core.wire import ANSWERS, FROM_AGENT, Frame, FrameType
from remusdb.deadline import Deadline
from remusdb.errors import BadFrame, CannotProtect, Fenced, NoStandby, PeerRefused, PeerUnreachable, RemusError
from remusdb.transport.stream import FrameStream
from remusdb.transport.tls import client_context, connect

STEPS = 4 * JUMP_MAX // HELLO_JUMP_MAX  # so far a hostile agent puts an honest one behind in four sessions
WELCOME_S = 60.0  # a standby is started before a new session is welcomed: as long as starting a QEMU takes
PROBE_S = 15.0  # it looks at its host, and asks libvirt


class AgentBehind(PeerRefused):
    """The agent's term is far behind that of the HELLO, and has come a step nearer."""


@dataclass(frozen=True)
class Greeting:
    """A connection on which the agent said WELCOME."""

    stream: FrameStream
    welcome: Welcome


def dial(agent: Agent, within_s: float) -> FrameStream:
    """A connection with the agent, on which nothing was said yet."""
    context = client_context(agent.tls.ca, agent.tls.cert, agent.tls.key)
    return connect(agent.address, agent.port, context, agent.name, within_s)


@dataclass(frozen=True)
class Agent:
    """Where an agent listens (its certificate is for `name`), what this host shows it, and how long it is waited for.

    All of these raise PeerUnreachable and its kin, PeerRefused, ConfigError for certificates, BadFrame.
    """

    name: str
    address: str
    port: int
    tls: Tls
    protection: Protection
    dial: Callable[[Agent, float], FrameStream] = dial

    @property
    def timeout_s(self) -> float:
        """For a connection, and for an answer that is no work."""
        return self.protection.connect_timeout_ms / 1000

    def hello(self, hello: Hello, try_s: float | None = None) -> Greeting:
        """Connect, within `try_s` if given, and begin or resume a session. Also Fenced, NoStandby, CannotProtect.

        The welcome is one to this HELLO: of a session that is resumed its own term, of a fresh one nothing committed.
        """
        stream = self.dial(self, try_s or self.timeout_s)
        try:
            stream.allowed = ANSWERS
            stream.send(FrameType.HELLO, hello.term, 0, pack(hello))
            frame = _answer(stream, self.timeout_s if hello.resume else WELCOME_S)
            if frame is None:
                raise PeerUnreachable(f"agent {self.name} does not answer HELLO")
            if frame.type is FrameType.REFUSE:
                raise refused(self.name, unpack(Refuse, frame.payload), hello.term)
            welcome = unpack(Welcome, frame.payload)
            _require_answer(self.name, hello, welcome)
            check_silence(self.protection.heartbeat_ms, welcome.silence_ms)
            check_copy_patience(self.protection.copy_patience_ms, welcome.copy_patience_ms)
            stream.allowed = FROM_AGENT
        except BaseException:
            stream.close()
            raise
        return Greeting(stream, welcome)

    def hello_again(self, hello: Callable[[], Hello]) -> Greeting:
        """A new session, as `hello`; an agent whose term is behind is asked again while it comes nearer."""
        for _ in range(STEPS - 1):
            try:
                return self.hello(hello())
            except AgentBehind:
                continue
        return self.hello(hello())

    def ask(self, question: Question) -> Standing:
        """What the agent's host is to a VM, before anything is begun."""
        frame = self._exchange(FrameType.ASK, question.term, question, FrameType.STANDING, self.timeout_s)
        if frame is None:
            raise PeerUnreachable(f"agent {self.name} does not say who owns VM {question.vm}")
        if frame.type is FrameType.REFUSE:
            refuse = unpack(Refuse, frame.payload)
            raise PeerRefused(f"agent {self.name}: {refuse.reason}; {refuse.hint}", hint=refuse.hint)
        standing = unpack(Standing, frame.payload)
        if standing.vm != question.vm:
            raise BadFrame(f"agent {self.name} was asked of VM {question.vm}, and speaks of another one")
        return standing

    def probe(self, probe: Probe) -> Capabilities | Refuse:
        """What the agent's host can run, and has for this VM; or why it wants neither host nor VM."""
        frame = self._exchange(FrameType.PROBE, 0, probe, FrameType.PROBE, PROBE_S)
        if frame is None:
            raise PeerUnreachable(f"the agent of {self.name} does not say what it can run")
        kind: type[Capabilities | Refuse] = Refuse if frame.type is FrameType.REFUSE else Capabilities
        return unpack(kind, frame.payload)

    def _exchange(
        self, kind: FrameType, term: int, message: msgspec.Struct, answer: FrameType, within_s: float
    ) -> Frame | None:
        """One question on a connection of its own; its answer, a REFUSE, or None where there is none in time."""
        stream = self.dial(self, self.timeout_s)
        try:
            stream.allowed = (answer, FrameType.REFUSE)
            stream.send(kind, term, 0, pack(message))
            return stream.receive(within_s)
        finally:
            stream.close()


def _require_answer(peer: str, hello: Hello, welcome: Welcome) -> None:
    """BadFrame for a WELCOME that answers another HELLO. It fences nobody: only a refusal says who runs the VM."""
    if welcome.resumed != hello.resume:
        raise BadFrame(
            f"agent {peer} was asked to {'resume' if hello.resume else 'begin'} a session, and does the other"
        )
    if hello.resume and welcome.term != hello.term:
        raise BadFrame(f"agent {peer} resumes a session of term {welcome.term}, that of term {hello.term} was asked")
    if not hello.resume and (welcome.term <= hello.term or welcome.committed or welcome.taken):
        raise BadFrame(f"agent {peer} begins a session of term {welcome.term} with epoch {welcome.committed}")


def _answer(stream: FrameStream, within_s: float) -> Frame | None:
    """What the agent says to HELLO. Its heartbeat, in a thread of its own, may be faster than its answer."""
    deadline = Deadline.after(within_s)
    while not deadline.over:
        frame = stream.receive(deadline.left())
        if frame is None or frame.type is not FrameType.HEARTBEAT:
            return frame
    return None


def refused(peer: str, refuse: Refuse, term: int) -> RemusError:
    """The refusal as an error, to one of `term`. BadFrame where it contradicts itself: nothing follows from that."""
    if refuse.fenced and refuse.term < term:
        return BadFrame(f"agent {peer} says that a host owns the VM in term {refuse.term}, this one has term {term}")
    if refuse.fenced:
        return Fenced(f"agent {peer}: {refuse.reason} (term {refuse.term})", hint=refuse.hint, term=refuse.term)
    if refuse.renounced:
        return NoStandby(f"agent {peer}: {refuse.reason}", hint=refuse.hint)
    kind = {"preflight": CannotProtect, "behind": AgentBehind}.get(refuse.code, PeerRefused)
    return kind(f"agent {peer}: {refuse.reason}", hint=refuse.hint)
