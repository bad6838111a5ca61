# SPDX-License-Identifier: Apache-2.0
"""The primary's side of the model, see epoch_world."""

from __future__ import annotations

import struct
from collections import deque

from remusdb.core.messages import Commit, Hello, Notice, Refuse, Taken, Welcome, pack, unpack
from remusdb.core.pipeline import Pipeline, PrimaryState
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import BadFrame, Fenced, PeerUnreachable
from remusdb.names import VmName
from remusdb.worker.encoder import EpochFrames
from remusdb.worker.outbox import Outbox
from tests.model.epoch_world import CELL, CELLS, Connection, Disk, End, Gate, World

UUID = "0f3c1a52-8f0e-4d0a-9b60-3f1c2d4e5a6b"
ROUNDS = 2  # of the initial copy: a delta of a cell that is applied twice, or not at all, is seen


class Primary:
    """The host daemon and its session. `None` in `pipeline`: the daemon is down, or protects nothing."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.disk = Disk(world)
        self.gate = Gate(world)
        self.pipeline: Pipeline | None = None
        self.crash()

    @property
    def session(self) -> Pipeline:
        """The pipeline, where there must be one."""
        assert self.pipeline is not None
        return self.pipeline

    @property
    def line(self) -> End:
        """The connection, where there must be one."""
        assert self.stream is not None
        return self.stream

    @property
    def state(self) -> PrimaryState | None:
        return self.pipeline.state if self.pipeline else None

    @property
    def lost(self) -> bool:
        """Whether the agent is away, and asked again."""
        return self.pipeline is not None and (self.pipeline.away or self.pipeline.state is PrimaryState.HELD)

    @property
    def cutting(self) -> bool:
        """Whether the initial copy is done, so that epochs are cut."""
        return self.welcomed and self.armed and not self.gate.passing

    def crash(self) -> None:
        """The daemon dies: its connection and what the gate held go with it."""
        if self.pipeline is not None and self.stream is not None:
            self.stream.close()
        if not self.gate.passing:
            self.gate.lose_held()
        self.pipeline = None
        self.stream: End | None = None
        self.hello_sent = self.welcomed = self.was_protected = False
        self.outbox = Outbox(seed_bytes_s=0)
        self.to_seed: deque[int] = deque()
        self.armed = False
        self.shadow: list[int] = [0] * CELLS
        self.to_ship: deque[EpochFrames] = deque()

    # --- steps ---

    def protect(self) -> None:
        """A new session: asked for, or taken up after a crash."""
        self.crash()
        self.was_protected = self.disk.role == "protected"
        self.pipeline = Pipeline(window=2)
        self.pipeline.term = self.disk.term
        self._connect(resume=False)

    def reconnect(self) -> None:
        self._connect(resume=True)

    def seed_one(self) -> None:
        """Send one cell of the initial copy; after the last one, output is held from now on."""
        cell = self.to_seed.popleft()
        self.outbox.seed([(FrameType.PAGES, self._delta(cell))])

    @property
    def seeded(self) -> bool:
        """Whether the agent has all of the initial copy, and nothing was cut yet."""
        return self.welcomed and not self.armed and not self.to_seed and not self.outbox._copy.waiting

    def arm(self) -> None:
        """Output is held from now on."""
        self.disk.save("protected", self.session.term)
        self.armed = True
        self.gate.hold()

    def give_up(self) -> None:
        """The agent was away for too long in the initial copy."""
        self._abandon()

    def cut_epoch(self) -> None:
        pipeline, guest = self.session, self._world.guest
        epoch = pipeline.next_epoch()
        if epoch is None:
            return
        self.gate.mark(epoch)
        changed = [cell for cell in range(CELLS) if guest.memory[cell] != self.shadow[cell]]
        frames = [(FrameType.PAGES, self._delta(cell)) for cell in changed]
        frames.append((FrameType.DEVICES, struct.pack("<Q", guest.clock)))
        size = sum(len(payload) for _, payload in frames)
        self._world.cuts[pipeline.term, epoch] = (tuple(guest.memory), guest.clock)
        pipeline.cut(epoch)
        self.to_ship.append(EpochFrames(epoch, frames, Commit(len(frames), size, [])))

    def ship_one(self) -> None:
        self.outbox.ship(self.to_ship.popleft())

    def unprotect(self) -> None:
        self.outbox.say(FrameType.BYE, pack(Notice("asked for")))

    def hear_late(self, ack: Frame) -> None:
        """An acknowledgement of any earlier time, by a thread that was slow."""
        if self.pipeline is not None:
            self._act(ack)

    def hear(self) -> None:
        """Take in one frame, or notice that the connection is gone."""
        if self.pipeline is None or self.stream is None:
            return
        try:
            frame = self.stream.receive()
            if frame is not None:
                self._act(frame)
        except BadFrame:
            raise  # between two correct sides there is none
        except PeerUnreachable:
            self._lost()

    # --- what follows from what was heard ---

    def _connect(self, resume: bool) -> None:
        pipeline, connection = self.session, Connection()
        self._world.connecting.append(connection)
        self.stream, self.hello_sent = End(connection, is_agent=False), True
        hello = Hello("1", "alpha", VmName("vm"), UUID, pipeline.term, resume, 0, "q35", "", [], [], 50, "10")
        self.stream.send(FrameType.HELLO, pipeline.term, 0, pack(hello))

    def _act(self, frame: Frame) -> None:
        pipeline = self.session
        if frame.type is FrameType.ACK:
            release = pipeline.ack(frame.term, frame.epoch)
            if release is not None:
                self.gate.release(release.epoch)
                self.outbox.acked(release.epoch)
        elif frame.type is FrameType.WELCOME and self.hello_sent:
            self.hello_sent = False
            self._welcome(unpack(Welcome, frame.payload))
        elif frame.type is FrameType.REFUSE:
            refuse = unpack(Refuse, frame.payload)
            if refuse.fenced:
                self._fenced()
            elif refuse.renounced:
                self._renounced()
            else:
                self._lost()  # no word about who may speak: ask again
        elif frame.type is FrameType.TAKEN:
            self.outbox.seed_taken(unpack(Taken, frame.payload).frames)
        elif frame.type is FrameType.RENOUNCE:
            self._renounced()
        else:
            raise AssertionError(f"the agent sends {frame.type.name}")

    def _welcome(self, welcome: Welcome) -> None:
        pipeline, stream = self.session, self.line
        if not welcome.resumed:
            self.disk.save("protected" if self.was_protected else "seeding", welcome.term)
            pipeline.begin(welcome.term)
            self.welcomed, self.to_seed = True, deque(range(CELLS)) * ROUNDS
            self.outbox.attach(stream, welcome.term, 0)  # type: ignore[arg-type]
            return
        try:
            release, again = pipeline.resumed(welcome.term, welcome.committed)
        except Fenced:
            return self._lost()
        if release is not None:
            self.gate.release(release.epoch)
        kept = {frames.epoch for frames in self.to_ship} | set(self.outbox._kept)
        assert again == sorted(epoch for epoch in kept if epoch > welcome.committed)
        assert set(again) == set(range(welcome.committed + 1, pipeline.captured + 1))
        self.outbox.attach(stream, welcome.term, welcome.committed, welcome.taken)  # type: ignore[arg-type]

    def _lost(self) -> None:
        pipeline = self.session
        self.outbox.detach()
        if self.stream is not None:
            self.stream.close()
        self.stream, self.hello_sent = None, False
        pipeline.lost()
        if pipeline.state is not PrimaryState.HELD and not pipeline.away:
            self._abandon()

    def _abandon(self) -> None:
        """protect() failed before an epoch went out. A welcome means that no earlier replica is left."""
        safe = self.welcomed or not self.was_protected
        assert self.session.captured == 0
        self.session.end()
        self.crash()
        if safe:
            self._open()

    def _renounced(self) -> None:
        """The agent cannot take over."""
        self.session.end()
        self.crash()
        self._open()

    def _open(self) -> None:
        """Output flows; recorded only then, for a daemon that dies in between must still know that it was held."""
        self.gate.open_all()
        self.disk.save("none", self.disk.term)

    def _fenced(self) -> None:
        self.session.fence(0)  # who refuses a resume does not always say its term
        self.gate.shut()
        if self.stream is not None:
            self.stream.close()
        self.stream = None
        self.disk.save("fenced", self.session.term)

    def _delta(self, cell: int) -> bytes:
        now = self._world.guest.memory[cell]
        payload = CELL.pack(cell, now ^ self.shadow[cell])
        self.shadow[cell] = now
        return payload
