# SPDX-License-Identifier: Apache-2.0
"""The connection to the agent: heartbeats, over it and beside it, what it says, and getting the connection back.

Owns the stream of one session. Invariant: whoever is told `on_lost` hears nothing more of the old connection;
an answer of the agent in a newer term ends in `on_fenced`, whatever else was under way.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from remusdb.core.beats import interval_s
from remusdb.core.messages import Acked, Base, Hello, Notice, Proof, Refuse, Taken, Welcome, unpack
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import BadFrame, Fenced, NoStandby, PeerUnreachable, RemusError
from remusdb.threads import start
from remusdb.transport.agent_client import Agent, Greeting, refused
from remusdb.transport.datagrams import Datagrams
from remusdb.transport.stream import FrameStream
from remusdb.worker.hurry import hurry
from remusdb.worker.spec import ProtectionSpec

log = logging.getLogger(__name__)

RECONNECT_S = 0.02
CALM_S = 10.0  # a connection that lasted so long was a good one
RECONNECT_MAX_S = 1.0  # with an agent whose answers cannot be: each time would be a line in log and history
# After half of the agent's silence limit without a word the connection is made again: TCP, which doubles its waits,
# may need longer than that limit to notice that a link which was cut for a moment is back.
PATIENCE_OF_SILENCE = 0.5
COPY_SILENCE = 0.1  # of protection.copy_patience_ms: nothing is at stake in the initial sync, so there is time
LATE_LOOK = 1.5  # times that patience: not looked for so long, this process was stopped
TRY_S = 0.15  # one try to connect again; the first ones must all fit into what is left of the limit


class Listener(Protocol):
    """Who acts on what the agent says. Called from the peer's thread."""

    def may_be_replaced(self) -> bool:
        """Whether the agent may take the VM over: it may not before it holds an epoch."""

    def on_taken(self, frames: int) -> None:
        """The agent has applied so many frames of the initial sync."""

    def on_given_up(self, reason: str) -> None:
        """The initial sync cannot go on: the agent was away for too long, or lost what it had."""

    def on_ack(self, term: int, epoch: int, applied: int | None) -> None:
        """The agent holds everything up to `epoch`; its disks have the writes up to `applied`, None: it takes no
        references to them."""

    def on_lost(self, reason: str) -> None:
        """The connection is gone; it is being tried again."""

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


class AgentLink:
    """The agent, as the running session sees it: two threads, one that listens and one that beats."""

    def __init__(
        self, spec: ProtectionSpec, hello: Callable[[], Hello], listener: Listener, agent: Agent | None = None
    ) -> None:
        """`agent`: another way to it than that of the spec."""
        self._spec = spec
        self._agent = agent or spec.agent
        self._hello = hello
        self._listener = listener
        self._stream: FrameStream | None = None
        self._term = 0
        self._patience_s = 0.0
        self._copy_patience_s = spec.protection.copy_patience_ms / 1000
        self._ended = threading.Event()
        self._paused = False
        self._datagrams = Datagrams()
        self._bad_answers = 0  # in a row, on connections that did not last
        self._heard_at = self._taken_at = 0.0
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
        """How long the agent has not been heard over its connection; None before the first word."""
        return 1000 * (time.monotonic() - self._heard_at) if self._heard_at else None

    @property
    def datagrams(self) -> bool:
        """Whether the agent answers heartbeat datagrams."""
        return self._datagrams.heard

    def pause(self) -> None:
        """No more heartbeats: the agent begins to count the silence."""
        self._paused = True

    def close(self) -> None:
        """End for good."""
        self._ended.set()
        self._datagrams.close()
        if self._stream is not None:
            self._stream.close()

    def _take(self, greeting: Greeting) -> None:
        self._stream, self._term = greeting.stream, greeting.welcome.term
        self._taken_at = self._heard_at = time.monotonic()
        self._patience_s = PATIENCE_OF_SILENCE * greeting.welcome.silence_ms / 1000
        offer = greeting.welcome.datagrams
        self._datagrams.follow(offer, self._term, greeting.stream.ends if offer else None)

    def _beat(self) -> None:
        hurry()  # on a busy host it would come late, and the agent would wait longer for a host that is dead
        heartbeat_s = self._spec.protection.heartbeat_ms / 1000
        due = time.monotonic() + heartbeat_s  # over the connection
        while not self._ended.wait(interval_s(heartbeat_s) if self._datagrams.offered else heartbeat_s):
            if self._paused:
                continue
            self._datagrams.beat()
            stream, now = self._stream, time.monotonic()
            if stream is None or now < due:
                continue
            due = now + heartbeat_s - interval_s(heartbeat_s) / 2
            try:
                stream.beat(self._term)  # waits for nobody, or no datagram would leave meanwhile
            except PeerUnreachable:
                stream.close()

    def _listen(self) -> None:
        """Task boundary: a failure here would leave output held, with nobody to hear the agent's word."""
        try:
            self._listen_on()
        except Exception as exc:
            log.exception("the connection to agent %s failed", self._spec.peer.name)
            self._listener.on_broken(exc)

    def _listen_on(self) -> None:
        while not self._ended.is_set():
            stream = self._stream
            assert stream is not None
            try:
                self._hear(stream)
            except (PeerUnreachable, Fenced) as exc:
                stream.close()
                lasted = time.monotonic() - self._taken_at > CALM_S
                self._bad_answers = (0 if lasted else self._bad_answers) + isinstance(exc, BadFrame)
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
                raise PeerUnreachable(f"agent {self._spec.peer.name} has been silent for {patience_s:g} s")

    def _silence_s(self) -> float:
        """How long the agent may be silent on a connection before it is made again."""
        return self._patience_s if self._listener.may_be_replaced() else COPY_SILENCE * self._copy_patience_s

    def _act(self, frame: Frame) -> None:
        if frame.type is FrameType.ACK:
            applied = unpack(Acked, frame.payload).applied if frame.payload else None
            self._listener.on_ack(frame.term, frame.epoch, applied)
        elif frame.type is FrameType.TAKEN:
            self._listener.on_taken(unpack(Taken, frame.payload).frames)
        elif frame.type is FrameType.RENOUNCE:
            reason = unpack(Notice, frame.payload).reason  # first: one that cannot be read is no word, and ends nothing
            self._ended.set()
            self._listener.on_renounced(reason)
        elif frame.type is FrameType.REFUSE:
            refusal = refused(self._spec.peer.name, unpack(Refuse, frame.payload), self._term)
            if isinstance(refusal, Fenced):
                self._fenced(refusal.term, str(refusal))
            elif isinstance(refusal, BadFrame):
                raise refusal
        elif frame.type is FrameType.BASE:
            self._listener.on_base(unpack(Base, frame.payload))
        elif frame.type is FrameType.PROOF:
            self._listener.on_proof(unpack(Proof, frame.payload))
        elif frame.type is FrameType.DECLINE:
            self._listener.on_declined(unpack(Notice, frame.payload).reason)
        elif frame.type is not FrameType.HEARTBEAT:
            raise BadFrame(f"agent {self._spec.peer.name} sends {frame.type.name} in a session")

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
        """Try until the agent takes the session up again, or will not; in the initial sync, for a while."""
        hello, try_s = self._hello(), TRY_S
        while not self._ended.wait(min(RECONNECT_MAX_S, RECONNECT_S * 2 ** min(self._bad_answers, 10))):
            if self._too_late():
                return self._give_up(f"agent {self._spec.peer.name} has been away for {self._copy_patience_s:g} s")
            try:
                greeting = self._agent.hello(hello, try_s)
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
                log.debug("no way back to agent %s yet: %s", self._spec.peer.name, exc)
                try_s = min(1.5 * try_s, self._spec.protection.connect_timeout_ms / 1000)
                continue
            if self._resumes(greeting):
                return None

    def _resumes(self, greeting: Greeting) -> bool:
        """Go on with this connection. False where what the agent says of the session cannot be, or the session is over
        here by the arbiter's word: that fences nobody, and the connection is closed."""
        self._take(greeting)  # heartbeats first: what is sent again may take long
        try:
            self._listener.on_resumed(greeting.stream, greeting.welcome)
            return True
        except BaseException as exc:
            self._stream = None
            greeting.stream.close()
            if not isinstance(exc, RemusError):
                raise
            self._bad_answers += 1
            log.warning("the session with agent %s is not resumed: %s", self._spec.peer.name, exc)
            return False
