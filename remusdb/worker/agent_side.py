# SPDX-License-Identifier: Apache-2.0
"""What a session hears of its agent, as events; and what it has done with the connection.

Owns the connections on which a session may be resumed, until that is decided. What the agent says of the initial
sync and of its standby decides nothing, and goes to those who wait for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future

from remusdb.control.status import Heartbeat
from remusdb.core import primary_events as events
from remusdb.core.messages import Base, Hello, Notice, Proof, Welcome, pack
from remusdb.core.pipeline import Pipeline
from remusdb.core.wire import FrameType
from remusdb.errors import BadFrame, Fenced, PeerUnreachable
from remusdb.transport.agent_client import Greeting
from remusdb.transport.stream import FrameStream
from remusdb.worker.agent_link import AgentLink
from remusdb.worker.disk_reads import DiskReads
from remusdb.worker.initial_sync import InitialSync
from remusdb.worker.mailbox import Mailbox
from remusdb.worker.metrics import Metrics
from remusdb.worker.outbox import Outbox
from remusdb.worker.proof import StandbyProof
from remusdb.worker.spec import ProtectionSpec


class AgentSide:
    """Of one session. The `on_...` are called by the peer's thread, what is below them by the session's."""

    def __init__(
        self,
        spec: ProtectionSpec,
        hello: Callable[[], Hello],
        mailbox: Mailbox,
        pipeline: Pipeline,
        outbox: Outbox,
        sync: InitialSync,
        proof: StandbyProof,
        metrics: Metrics,
        failed: Callable[[Exception], None],
    ) -> None:
        """`hello`: with which the session is resumed. `failed` is told why the initial sync cannot go on."""
        self._mailbox = mailbox
        self._pipeline = pipeline
        self._outbox = outbox
        self._sync = sync
        self._proof = proof
        self._metrics = metrics
        self._failed = failed
        self.reads: DiskReads | None = None  # is told what the agent has applied
        self._peer = AgentLink(spec, hello, self)
        self._lines: dict[int, tuple[FrameStream, Future[None]]] = {}

    # --- what the agent says ---

    def may_be_replaced(self) -> bool:
        """Once an epoch was cut, the agent may hold it."""
        return self._pipeline.captured > 0

    def on_base(self, base: Base) -> None:
        """Hashes of an older image that the agent has: the initial sync waits for these."""
        self._sync.take(base)

    def on_taken(self, frames: int) -> None:
        """The agent has applied so many frames of the initial sync."""
        self._outbox.seed_taken(frames)

    def on_proof(self, proof: Proof) -> None:
        """Whether the agent's standby would take this VM's state."""
        self._proof.take(proof)

    def on_given_up(self, reason: str) -> None:
        """The initial sync cannot go on with this agent's replica."""
        self._failed(PeerUnreachable(reason))

    def on_ack(self, term: int, epoch: int, applied: int | None) -> None:
        """The agent holds everything up to `epoch`, and its disks are at `applied`. BadFrame where that cannot be."""
        self._pipeline.require_cut(term, epoch)
        if applied is not None and applied > epoch:
            raise BadFrame(f"the agent acknowledges epoch {epoch} and says that it has applied {applied}")
        if self.reads is not None:
            self.reads.told(applied)
        self._metrics.reached(epoch, "ack")
        self._mailbox.post(events.Acked(term, epoch))

    def on_lost(self, reason: str) -> None:
        """The connection is gone; it is being made again."""
        if self.reads is not None:
            self.reads.forget()
        self._mailbox.post(events.Lost(reason))

    def on_resumed(self, stream: FrameStream, welcome: Welcome) -> None:
        """The agent takes the session up again. Returns once it goes on; RemusError when it does not."""
        line, answer = id(stream), Future[None]()
        self._lines[line] = (stream, answer)
        try:
            self._mailbox.send(events.Resumed(welcome.term, welcome.committed, welcome.taken, line)).result()
            answer.result()  # while the arbiter is asked, not yet
        finally:
            del self._lines[line]

    def on_declined(self, reason: str) -> None:
        """The agent does not take the VM over."""
        self._mailbox.post(events.Declined(reason))

    def on_renounced(self, reason: str) -> None:
        """The agent can no longer take over."""
        self._mailbox.post(events.Renounced(reason))

    def on_fenced(self, term: int, reason: str) -> None:
        """Another host owns the VM."""
        self._mailbox.post(events.FencedOff(term, reason))

    def on_broken(self, exc: Exception) -> None:
        """The agent cannot be heard any more."""
        self._mailbox.post(events.Broken(f"{type(exc).__name__}: {exc}"))

    # --- what is done with the connection ---

    def use(self, greeting: Greeting) -> None:
        """Send on this connection. Whatever fails from here on, BYE is said on it."""
        self._outbox.attach(greeting.stream, greeting.welcome.term, 0)

    def listen(self, greeting: Greeting) -> None:
        """Hear the agent, and beat. NoThread."""
        self._peer.start(greeting)

    def silence_ms(self) -> float | None:
        """How long the agent has not been heard; None before the first word."""
        return self._peer.silence_ms()

    def heartbeat(self) -> Heartbeat:
        """By what the agent is heard; None before the first word."""
        if self._peer.silence_ms() is None:
            return None
        return "datagrams" if self._peer.datagrams else "connection"

    def attach(self, line: int, term: int, committed: int, taken: int) -> None:
        """The session goes on over this connection. BadFrame for a count that cannot be."""
        stream, answer = self._lines[line]
        self._outbox.attach_apart(stream, term, committed, taken)
        answer.set_result(None)

    def hang_up(self, line: int, why: str) -> None:
        """The session does not go on over this connection."""
        self._lines[line][1].set_exception(Fenced(why))

    def say_bye(self, why: str, forget: bool, line: int | None) -> None:
        """Ask the agent to give its standby up, on the connection in use or on another one."""
        notice = pack(Notice(why, forget=forget))
        if line is None:
            return self._outbox.say(FrameType.BYE, notice)
        stream, answer = self._lines[line]
        with contextlib.suppress(PeerUnreachable):
            stream.send(FrameType.BYE, self._pipeline.term, 0, notice)
        answer.set_result(None)

    def say_take_over(self) -> None:
        """Ask the agent to take the VM over."""
        self._outbox.say(FrameType.TAKEOVER, pack(Notice("asked for on the primary")))

    def detach(self) -> None:
        """There is no connection: what is to be sent waits."""
        self._outbox.detach()

    def fall_silent(self) -> None:
        """No more heartbeats."""
        self._peer.pause()

    def close(self) -> None:
        """Hear and say nothing more."""
        self._peer.close()
        self._outbox.detach()  # of a session that failed before its agent was heard
