# SPDX-License-Identifier: Apache-2.0
"""The connection to the agent: greeting, heartbeats, what it says, and getting the connection back.

Owns the stream of one session. Invariant: whoever is told `on_lost` hears nothing more of the old connection;
an answer of the agent in a newer term ends in `on_fenced`, whatever else was under way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from remusdb.config import check_copy_patience, check_silence
from remusdb.core.messages import (
    Base,
    Hello,
    Notice,
    Proof,
    Question,
    Refuse,
    Standing,
    Taken,
    Welcome,
    pack,
    unpack,
)
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import BadFrame, CannotProtect, Fenced, NoStandby, PeerRefused, PeerUnreachable, RemusError
from remusdb.host.order import Order
from remusdb.threads import start
from remusdb.transport.stream import FrameStream
from remusdb.transport.tls import client_context, connect

log = logging.getLogger(__name__)

RECONNECT_S = 0.02
# After half of the agent's silence limit without a word the connection is made anew: TCP, which doubles its waits,
# may need longer than that limit to notice that a link which was cut for a moment is back.
PATIENCE_OF_SILENCE = 0.5
COPY_SILENCE = 0.1  # of protection.copy_patience_ms: nothing is at stake in the initial copy, so there is time
LATE_LOOK = 1.5  # times that patience: not looked for so long, this process was stopped
TRY_S = 0.15  # one try to connect again; the first ones must all fit into what is left of the limit


class Listener(Protocol):
    """Who acts on what the agent says. Called from the peer's thread."""

    def may_be_replaced(self) -> bool:
        """Whether the agent may take the VM over: it may not before it holds an epoch."""

    def on_taken(self, frames: int) -> None:
        """The agent has applied so many frames of the initial copy."""

    def on_given_up(self, reason: str) -> None:
        """The initial copy cannot go on: the agent was away for too long, or lost what it had."""

    def on_ack(self, term: int, epoch: int) -> None:
        """The agent holds everything up to `epoch`."""

    def on_lost(self, reason: str) -> None:
        """The connection is gone; it is being tried anew."""

    def on_resumed(self, stream: FrameStream, welcome: Welcome) -> None:
        """The agent took the session up again on this new connection."""

    def on_renounced(self, reason: str) -> None:
        """The agent gave its standby up and can no longer take over."""

    def on_broken(self, exc: Exception) -> None:
        """Nothing more will be heard."""

    def on_fenced(self, term: int, reason: str) -> None:
        """The agent runs the VM, in `term`."""

    def on_base(self, base: Base) -> None:
        """Hashes of an older image of a disk that the agent has."""

    def on_proof(self, proof: Proof) -> None:
        """The agent has tried whether its standby would take the VM's state."""

    def on_declined(self, reason: str) -> None:
        """The agent was asked to take over, and does not."""


@dataclass(frozen=True)
class Greeting:
    """A connection on which the agent said WELCOME."""

    stream: FrameStream
    welcome: Welcome


def greet(order: Order, hello: Hello, try_s: float | None = None) -> Greeting:
    """Connect, within `try_s` if given, and say HELLO. PeerUnreachable and its kin, CannotProtect or Fenced."""
    context = client_context(order.tls.ca, order.tls.cert, order.tls.key)
    timeout_s = order.protection.connect_timeout_ms / 1000
    stream = connect(order.peer.address, order.peer.port, context, order.peer.name, try_s or timeout_s)
    try:
        stream.send(FrameType.HELLO, hello.term, 0, pack(hello))
        # A standby is started before the agent welcomes a new session: that takes as long as starting a QEMU.
        frame = _answer(stream, timeout_s if hello.resume else 60.0)
        if frame is None:
            raise PeerUnreachable(f"agent {order.peer.name} does not answer HELLO")
        if frame.type is FrameType.REFUSE:
            raise _refused(order.peer.name, unpack(Refuse, frame.payload))
        if frame.type is not FrameType.WELCOME:
            raise BadFrame(f"agent {order.peer.name} answers HELLO with {frame.type.name}")
        welcome = unpack(Welcome, frame.payload)
        check_silence(order.protection.heartbeat_ms, welcome.silence_ms)
        check_copy_patience(order.protection.copy_patience_ms, welcome.copy_patience_ms)
    except RemusError:
        stream.close()
        raise
    return Greeting(stream, welcome)


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
        stream.send(FrameType.ASK, term, 0, pack(Question(order.vm, order.host, term)))
        frame = stream.receive(timeout_s)
    finally:
        stream.close()
    if frame is not None and frame.type is FrameType.REFUSE:
        refuse = unpack(Refuse, frame.payload)
        raise PeerRefused(f"agent {order.peer.name}: {refuse.reason}; {refuse.hint}", hint=refuse.hint)
    if frame is None or frame.type is not FrameType.STANDING:
        raise PeerUnreachable(f"agent {order.peer.name} does not say who owns VM {order.vm}")
    return unpack(Standing, frame.payload)


def _refused(peer: str, refuse: Refuse) -> RemusError:
    if refuse.fenced:
        return Fenced(f"agent {peer}: {refuse.reason} (term {refuse.term})", hint=refuse.hint, term=refuse.term)
    if refuse.renounced:
        return NoStandby(f"agent {peer}: {refuse.reason}", hint=refuse.hint)
    kind = CannotProtect if refuse.code == "preflight" else PeerRefused
    return kind(f"agent {peer}: {refuse.reason}", hint=refuse.hint)


class Peer:
    """The agent, as the running session sees it: two threads, one that listens and one that beats."""

    def __init__(self, order: Order, hello: Callable[[bool], Hello], listener: Listener) -> None:
        self._order = order
        self._hello = hello
        self._listener = listener
        self._stream: FrameStream | None = None
        self._term = 0
        self._patience_s = 0.0
        self._copy_patience_s = order.protection.copy_patience_ms / 1000
        self._ended = threading.Event()
        self._paused = False
        self._heard_at = 0.0
        self._threads = [
            threading.Thread(target=self._listen, name="peer", daemon=True),
            threading.Thread(target=self._beat, name="heartbeat", daemon=True),
        ]

    def start(self, greeting: Greeting) -> None:
        """Listen and beat on this connection."""
        self._take(greeting)
        for thread in self._threads:
            start(thread)

    def silence_ms(self) -> float | None:
        """How long the agent has not been heard; None before the first word."""
        return 1000 * (time.monotonic() - self._heard_at) if self._heard_at else None

    def pause(self) -> None:
        """No more heartbeats: the agent begins to count the silence."""
        self._paused = True

    def close(self) -> None:
        """End for good."""
        self._ended.set()
        if self._stream is not None:
            self._stream.close()

    def _take(self, greeting: Greeting) -> None:
        self._stream, self._term = greeting.stream, greeting.welcome.term
        self._heard_at = time.monotonic()
        self._patience_s = PATIENCE_OF_SILENCE * greeting.welcome.silence_ms / 1000

    def _beat(self) -> None:
        while not self._ended.wait(self._order.protection.heartbeat_ms / 1000):
            stream = self._stream
            if stream is None or self._paused:
                continue
            try:
                stream.send(FrameType.HEARTBEAT, self._term, 0)
            except PeerUnreachable:
                stream.close()

    def _listen(self) -> None:
        """Task boundary: a failure here would leave output held, with nobody to hear the agent's word."""
        try:
            self._listen_on()
        except Exception as exc:
            log.exception("the connection to agent %s failed", self._order.peer.name)
            self._listener.on_broken(exc)

    def _listen_on(self) -> None:
        while not self._ended.is_set():
            stream = self._stream
            assert stream is not None
            try:
                self._hear(stream)
            except (PeerUnreachable, Fenced) as exc:
                stream.close()
                if self._ended.is_set():
                    return
                self._stream = None
                self._listener.on_lost(str(exc))
                self._come_back()

    def _hear(self, stream: FrameStream) -> None:
        looked = time.monotonic()
        while not self._ended.is_set():
            frame = stream.receive(self._patience_s / 4)
            late, looked = time.monotonic() - looked, time.monotonic()
            self._heard_at = stream.last_heard
            if late > LATE_LOOK * self._patience_s and self._listener.may_be_replaced():
                # This process stood still: what it reads now is old, and the agent may have taken over since.
                raise PeerUnreachable(f"this host was not running for {late:.2f} s")
            if frame is not None:
                self._act(frame)
                looked = time.monotonic()
            elif time.monotonic() - stream.last_heard > (patience_s := self._silence_s()):
                raise PeerUnreachable(f"agent {self._order.peer.name} is silent for {patience_s:g} s")

    def _silence_s(self) -> float:
        """How long the agent may be silent on a connection before it is made anew."""
        return self._patience_s if self._listener.may_be_replaced() else COPY_SILENCE * self._copy_patience_s

    def _act(self, frame: Frame) -> None:
        if frame.type is FrameType.ACK:
            self._listener.on_ack(frame.term, frame.epoch)
        elif frame.type is FrameType.TAKEN:
            self._listener.on_taken(unpack(Taken, frame.payload).frames)
        elif frame.type is FrameType.RENOUNCE:
            self._ended.set()
            self._listener.on_renounced(unpack(Notice, frame.payload).reason)
        elif frame.type is FrameType.REFUSE:
            refuse = unpack(Refuse, frame.payload)
            if refuse.fenced:
                self._fenced(refuse.term, refuse.reason)
        elif frame.type is FrameType.BASE:
            self._listener.on_base(unpack(Base, frame.payload))
        elif frame.type is FrameType.PROOF:
            self._listener.on_proof(unpack(Proof, frame.payload))
        elif frame.type is FrameType.DECLINE:
            self._listener.on_declined(unpack(Notice, frame.payload).reason)
        elif frame.type is not FrameType.HEARTBEAT:
            raise BadFrame(f"agent {self._order.peer.name} sends {frame.type.name} in a session")

    def _fenced(self, term: int, reason: str) -> None:
        self._ended.set()
        self._listener.on_fenced(term, reason)

    def _too_late(self) -> bool:
        away_s = time.monotonic() - self._heard_at
        return not self._listener.may_be_replaced() and away_s > self._copy_patience_s

    def _give_up(self, reason: str) -> None:
        self._ended.set()
        self._listener.on_given_up(reason)

    def _come_back(self) -> None:
        """Try until the agent takes the session up again, or will not; in the initial copy, for a while."""
        hello, try_s = self._hello(True), TRY_S
        while not self._ended.wait(RECONNECT_S):
            if self._too_late():
                return self._give_up(f"agent {self._order.peer.name} is away for {self._copy_patience_s:g} s")
            try:
                greeting = greet(self._order, hello, try_s)
                self._take(greeting)  # heartbeats first: what is sent again may take long
                self._listener.on_resumed(greeting.stream, greeting.welcome)
                return
            except Fenced as exc:
                return self._fenced(exc.term, str(exc))
            except NoStandby as exc:
                if not self._listener.may_be_replaced():
                    return self._give_up(str(exc))
                self._ended.set()
                return self._listener.on_renounced(str(exc))
            except RemusError as exc:
                # Also a refusal for another reason (a certificate, a stranger on that port): it says nothing of
                # whether the agent may take over.
                log.debug("no way back to agent %s yet: %s", self._order.peer.name, exc)
                try_s = min(1.5 * try_s, self._order.protection.connect_timeout_ms / 1000)
