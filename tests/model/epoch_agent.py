# SPDX-License-Identifier: Apache-2.0
"""The backup's side of the model, see epoch_world."""

from __future__ import annotations

import struct
from collections import deque

from remusdb.core.messages import Hello, Notice, Refuse, Taken, Welcome, pack, unpack
from remusdb.core.roles import OWNING
from remusdb.core.standby import Phase, Refusal, Standby
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import BadFrame, PeerUnreachable
from remusdb_agents.backup.inbox import BULK, Inbox, WholeEpoch
from remusdb_agents.backup.seeding import Seeding
from tests.model.epoch_world import CELL, CELLS, Disk, End, World


class Agent:
    """The backup's daemon with the replica of one VM. `None` in `core`: it is down."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.disk = Disk(world)
        self.core: Standby | None = None
        self.stream: End | None = None
        self.greeting: list[End] = []  # accepted, HELLO not yet read: in threads, so in any order
        self.which = 0  # of them, the one that is read next
        self.gathered: list[tuple[End, WholeEpoch]] = []  # whole epochs, in the hands of a session's thread
        self.owed: deque[tuple[End, WholeEpoch]] = deque()  # committed, the ACK not yet sent
        self._ends: list[End] = []  # every connection of this process
        self.start()

    @property
    def standby(self) -> Standby:
        """The core, where the daemon must be up."""
        assert self.core is not None
        return self.core

    @property
    def line(self) -> End:
        """The session's connection, where there must be one."""
        assert self.stream is not None
        return self.stream

    def crash(self) -> None:
        """The daemon dies, and with it a standby (not a VM that was resumed)."""
        while self._world.connecting:
            self.accept()
        for end in self._ends:
            end.close()
        self.core = self.stream = None
        self.greeting, self.gathered, self._ends = [], [], []
        self.owed.clear()

    def start(self) -> None:
        phase = Phase.PROMOTED if self.disk.role in OWNING else Phase.EMPTY
        self.core = Standby(self.disk.term, phase, self.disk.owner)
        self._forget_replica()
        self.promoting = False
        self.seeding = Seeding()

    # --- steps ---

    def accept(self) -> None:
        """Take the next connection."""
        end = End(self._world.connecting.popleft(), is_agent=True)
        self.greeting.append(end)
        self._ends.append(end)

    def greet(self) -> None:
        """Read HELLO and answer. A new session's term is durable before it is used."""
        core, stream = self.standby, self.greeting[self.which % len(self.greeting)]
        try:
            frame = stream.receive()
        except PeerUnreachable:
            self.greeting.remove(stream)
            return
        if frame is None:
            return
        self.greeting.remove(stream)
        hello = unpack(Hello, frame.payload)
        answer = core.hello(hello.primary, hello.term, hello.resume)
        if isinstance(answer, Refusal):
            if core.phase in (Phase.EMPTY, Phase.ENDING):
                self._give_up()
            refuse = Refuse(answer.reason, "", answer.term, answer.fenced, answer.renounced)
            stream.send(FrameType.REFUSE, 0, 0, pack(refuse))
            return
        self._drop_stream()
        if not answer.resumed:
            self.disk.save("standby", answer.term, owner=hello.primary)
            self._world.use_term(answer.term, self.disk.term)
            core.begin(hello.primary, answer.term)
            core.up()
            self.seeding.begin()
            self._forget_replica()
        self.inbox.clear()
        self.stream = stream
        taken = self.seeding.pause()
        welcome = Welcome("1", "beta", answer.term, answer.committed, answer.resumed, 500, taken=taken)
        stream.send(FrameType.WELCOME, answer.term, 0, pack(welcome))

    def hear(self) -> None:
        """Take in one frame of the session, or notice that it is gone."""
        if self.core is None or self.stream is None or any(end is self.stream for end, _ in self.gathered):
            return
        try:
            frame = self.stream.receive()
            if frame is not None:
                self._take(frame)
        except BadFrame:
            raise  # between two correct sides there is none
        except PeerUnreachable:
            self._lost()

    def commit(self) -> None:
        """Commit what a session's thread gathered; meanwhile others may have promoted, or begun a new session."""
        core = self.standby
        end, whole = self.gathered.pop(0)
        new, before = whole.epoch > core.committed, core.phase
        if not core.commit(whole.term, whole.epoch):
            return
        assert whole.term == core.term and before in (Phase.SEEDING, Phase.READY)
        if new:
            self.to_apply.append(whole)
        self.owed.append((end, whole))

    def ack(self) -> None:
        """Send the acknowledgement that is owed."""
        end, whole = self.owed.popleft()
        self._world.acks.append(Frame(FrameType.ACK, whole.term, whole.epoch, b""))
        if not end.closed:
            end.send(FrameType.ACK, whole.term, whole.epoch)

    def apply_one(self) -> None:
        """Move the replica to the next committed epoch, and check that it is that one exactly."""
        core, whole = self.standby, self.to_apply.popleft()
        for frame in whole.frames:
            self._apply(frame)
        core.moved(whole.epoch)
        assert (tuple(self.memory), self.clock) == self._world.cuts[whole.term, whole.epoch]

    def promote(self) -> None:
        """Decide to take over, if that is possible: durable first, then used."""
        core = self.standby
        if core.promotable() is not None:
            return
        term = core.term + 1
        self.disk.save("promoting", term, owner="beta")
        self._world.use_term(term, self.disk.term)
        self.promoted_from = (core.term, core.promote(term))
        self.promoting = True
        self._drop_stream()

    def resume(self) -> None:
        """The last committed epoch is applied: let the VM run."""
        if self.to_apply:
            return self.apply_one()
        core = self.standby
        assert core.applied == self.promoted_from[1]
        assert (tuple(self.memory), self.clock) == self._world.cuts[self.promoted_from]
        self._world.resume(self.clock)
        core.runs()
        self.promoting = False
        self.disk.save("promoted", core.term)

    # --- what follows from what was heard ---

    def _take(self, frame: Frame) -> None:
        core, stream = self.standby, self.line
        if not core.accepts(frame.term):
            return self._drop_stream()
        if frame.type in BULK and frame.epoch == 0:
            taken = self.seeding.take(frame, lambda: True, self._apply)
            assert taken is not None
            stream.send(FrameType.TAKEN, frame.term, 0, pack(Taken(taken)))
        elif frame.type in BULK:
            self.inbox.add(frame)
        elif frame.type is FrameType.COMMIT:
            self.gathered.append((stream, self.inbox.close(frame, 0)))
        elif frame.type is FrameType.BYE:
            self._give_up()
            stream.send(FrameType.RENOUNCE, frame.term, 0, pack(Notice("bye")))
        else:
            raise AssertionError(f"the primary sends {frame.type.name}")

    def give_up_copy(self) -> None:
        """The primary was away for too long in its initial copy."""
        stream = self.stream
        self._give_up()
        if stream is not None:
            stream.send(FrameType.RENOUNCE, self.standby.term, 0, pack(Notice("too long")))
        self._drop_stream()

    def _lost(self) -> None:
        """An incomplete replica, too, waits for its primary, for a while."""
        stream, self.stream = self.stream, None
        self.inbox.clear()
        if stream is not None:
            stream.close()

    def _give_up(self) -> None:
        self.standby.renounce()
        self.standby.gone()
        self._forget_replica()
        self.disk.save("none", self.standby.term)

    def _forget_replica(self) -> None:
        self.inbox = Inbox(1 << 20)
        self.memory, self.clock = [0] * CELLS, 0
        self.to_apply: deque[WholeEpoch] = deque()
        self.promoted_from = (0, 0)

    def _apply(self, frame: Frame) -> None:
        if frame.type is FrameType.DEVICES:
            (self.clock,) = struct.unpack("<Q", frame.payload)
        else:
            cell, delta = CELL.unpack(frame.payload)
            self.memory[cell] ^= delta

    def _drop_stream(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.stream = None
