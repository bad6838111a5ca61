# SPDX-License-Identifier: Apache-2.0
"""How a primary begins to speak with an agent: a session (HELLO), or a question (ASK).

Invariant: whatever the agent answers, or does not, either there is a greeting, or an error and no connection is left.
What is returned is within its bounds and an answer to what was said; all else is BadFrame, which fences nobody and
releases nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from remusdb.config import check_copy_patience, check_silence
from remusdb.core.messages import Hello, Question, Refuse, Standing, Welcome, pack, unpack
from remusdb.core.terms import HELLO_JUMP_MAX, JUMP_MAX
from remusdb.core.wire import ANSWERS, FROM_AGENT, Frame, FrameType
from remusdb.errors import BadFrame, CannotProtect, Fenced, NoStandby, PeerRefused, PeerUnreachable, RemusError
from remusdb.names import require_name
from remusdb.transport.stream import FrameStream
from remusdb.transport.tls import client_context, connect
from remusdb.worker.spec import Order

STEPS = 4 * JUMP_MAX // HELLO_JUMP_MAX  # so far a hostile agent puts an honest one behind in four sessions


class AgentBehind(PeerRefused):
    """The agent's term is far behind that of the HELLO, and has come a step nearer."""


@dataclass(frozen=True)
class Greeting:
    """A connection on which the agent said WELCOME."""

    stream: FrameStream
    welcome: Welcome


def greet(order: Order, hello: Hello, try_s: float | None = None) -> Greeting:
    """Connect, within `try_s` if given, and say HELLO. PeerUnreachable and its kin, CannotProtect or Fenced.

    The welcome is one to this HELLO: of a session that is resumed its own term, of a fresh one nothing committed.
    """
    context = client_context(order.tls.ca, order.tls.cert, order.tls.key)
    timeout_s = order.protection.connect_timeout_ms / 1000
    stream = connect(order.peer.address, order.peer.port, context, order.peer.name, try_s or timeout_s)
    try:
        stream.allowed = ANSWERS
        stream.send(FrameType.HELLO, hello.term, 0, pack(hello))
        # A standby is started before the agent welcomes a new session: that takes as long as starting a QEMU.
        frame = _answer(stream, timeout_s if hello.resume else 60.0)
        if frame is None:
            raise PeerUnreachable(f"agent {order.peer.name} does not answer HELLO")
        if frame.type is FrameType.REFUSE:
            raise refused(order.peer.name, unpack(Refuse, frame.payload), hello.term)
        welcome = unpack(Welcome, frame.payload)
        _require_answer(order.peer.name, hello, welcome)
        check_silence(order.protection.heartbeat_ms, welcome.silence_ms)
        check_copy_patience(order.protection.copy_patience_ms, welcome.copy_patience_ms)
        stream.allowed = FROM_AGENT
    except BaseException:
        stream.close()
        raise
    return Greeting(stream, welcome)


def greet_anew(order: Order, hello: Callable[[], Hello]) -> Greeting:
    """A new session with the agent, as `greet`; one whose term is behind is asked again while it comes nearer."""
    for _ in range(STEPS - 1):
        try:
            return greet(order, hello())
        except AgentBehind:
            continue
    return greet(order, hello())


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


def _answer(stream: FrameStream, timeout_s: float) -> Frame | None:
    """What the agent says to HELLO. Its heartbeat, in a thread of its own, may be faster than its answer."""
    end = time.monotonic() + timeout_s
    while (left := end - time.monotonic()) > 0:
        frame = stream.receive(left)
        if frame is None or frame.type is not FrameType.HEARTBEAT:
            return frame
    return None


def ask_standing(order: Order, term: int) -> Standing:
    """What the agent's host is to the VM, before anything is begun. PeerUnreachable when it does not say."""
    context = client_context(order.tls.ca, order.tls.cert, order.tls.key)
    timeout_s = order.protection.connect_timeout_ms / 1000
    stream = connect(order.peer.address, order.peer.port, context, order.peer.name, timeout_s)
    try:
        stream.allowed = (FrameType.STANDING, FrameType.REFUSE)
        stream.send(FrameType.ASK, term, 0, pack(Question(require_name(order.vm), order.host, term)))
        frame = stream.receive(timeout_s)
    finally:
        stream.close()
    if frame is not None and frame.type is FrameType.REFUSE:
        refuse = unpack(Refuse, frame.payload)
        raise PeerRefused(f"agent {order.peer.name}: {refuse.reason}; {refuse.hint}", hint=refuse.hint)
    if frame is None:
        raise PeerUnreachable(f"agent {order.peer.name} does not say who owns VM {order.vm}")
    standing = unpack(Standing, frame.payload)
    if standing.vm != order.vm:
        raise BadFrame(f"agent {order.peer.name} was asked of VM {order.vm}, and speaks of another one")
    return standing


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
