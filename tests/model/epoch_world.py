# SPDX-License-Identifier: Apache-2.0
"""A small world to run the epoch protocol in: a guest, its gate, two hosts with a disk each, a network.

The decisions are made by the real `Pipeline`, `Standby`, `Outbox` and `Inbox`; `Primary` and `Agent` are what is
left of `remusdb/host/session.py` and `remusdb_agents/replica.py` when threads, QEMU and sockets are taken away:
every method is one step between any two of which the other side may act, or a process may die.

A guest's memory is a few cells. Every write stores the next number of one clock, and every packet carries the
newest number it may depend on, so that 'what was spoken' and 'what the backup knows' can be compared.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field

from remusdb.core.messages import Commit, Hello, Notice, Refuse, Welcome, pack, unpack
from remusdb.core.pipeline import Pipeline, PrimaryState
from remusdb.core.standby import Refusal, Standby, StandbyState
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import BadFrame, Fenced, PeerUnreachable
from remusdb.host.encoder import EpochFrames
from remusdb.host.outbox import Outbox
from remusdb_agents.inbox import BULK, Inbox, WholeEpoch

CELLS = 3
CELL = struct.Struct("<BQ")
Memory = tuple[int, ...]


class Connection:
    """One TCP connection: in order, until it is cut at any point; then each side notices when it gets there."""

    def __init__(self) -> None:
        self.to_agent: deque[Frame] = deque()
        self.to_primary: deque[Frame] = deque()
        self.cut = False

    def break_off(self, agent_gets: int, primary_gets: int) -> None:
        """Cut; of what is under way the first so many frames still arrive."""
        self.cut = True
        for frames, kept in ((self.to_agent, agent_gets), (self.to_primary, primary_gets)):
            while len(frames) > kept:
                frames.pop()


class End:
    """One side's stream. What is written after the cut is lost without a word, as TCP does it."""

    def __init__(self, connection: Connection, is_agent: bool) -> None:
        self.connection = connection
        self._in = connection.to_agent if is_agent else connection.to_primary
        self._out = connection.to_primary if is_agent else connection.to_agent
        self.closed = False

    def send(self, type: FrameType, term: int, epoch: int, payload: bytes = b"") -> None:
        if self.closed:
            raise PeerUnreachable("closed on this side")
        if not self.connection.cut:
            self._out.append(Frame(type, term, epoch, payload))

    def send_many(self, frames: list[tuple[FrameType, int, int, bytes]]) -> None:
        for frame in frames:
            self.send(*frame)

    def receive(self) -> Frame | None:
        """The next frame; None if there is none yet; PeerUnreachable at the end."""
        if self.closed:
            raise PeerUnreachable("closed on this side")
        if self._in:
            return self._in.popleft()
        if self.connection.cut:
            raise PeerUnreachable("closed by the peer")
        return None

    def close(self) -> None:
        """As a close of TCP: what we said last may still be read by the peer."""
        self.closed = True
        self._in.clear()
        self.connection.cut = True


class Died(Exception):
    """A daemon was killed in the middle of a step."""


class Disk:
    """What one daemon keeps across its death."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.term = 0
        self.role = "none"

    def save(self, role: str, term: int) -> None:
        self._world.instant()
        self.role, self.term = role, term
        self._world.instant()


@dataclass
class Guest:
    """The VM: cells of memory, and the clock that numbers its writes."""

    memory: list[int] = field(default_factory=lambda: [0] * CELLS)
    clock: int = 0
    alive: bool = True

    def write(self, cell: int) -> None:
        self.clock += 1
        self.memory[cell] = self.clock


class World:
    """Everything, and the rules that must hold whatever happens."""

    def __init__(self) -> None:
        self.guest = Guest()
        self.connecting: deque[Connection] = deque()  # not yet accepted by the agent
        self.spoken = 0  # the newest number in a packet that clients have seen
        self.resumed: int | None = None  # the promoted VM's clock when it was resumed
        self.terms: list[int] = []  # in the order of their first use
        self.fuse: int | None = None  # so many instants around durable writes from now, the writer dies
        self.cuts: dict[tuple[int, int], tuple[Memory, int]] = {}
        self.acks: list[Frame] = []  # all that were ever sent
        self.primary = Primary(self)
        self.agent = Agent(self)

    def speak(self, clock: int) -> None:
        """A packet of the primary's VM reaches the clients."""
        if self.resumed is not None:
            assert clock <= self.resumed, f"the old primary says {clock}, the backup resumed at {self.resumed}"
        self.spoken = max(self.spoken, clock)

    def resume(self, clock: int) -> None:
        """The backup's VM begins to speak."""
        assert clock >= self.spoken, f"clients have seen {self.spoken}, the backup resumes at {clock}"
        assert not self.primary.gate.passing or not self.guest.alive, "two VMs speak"
        self.resumed = clock

    def instant(self) -> None:
        """One before and one after every durable write: whoever writes may die here."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = None
                raise Died

    def use_term(self, term: int, durable: int) -> None:
        assert durable >= term, f"term {term} is used and {durable} is on the disk"
        assert not self.terms or term > self.terms[-1], f"term {term} after {self.terms[-1]}"
        self.terms.append(term)


class Gate:
    """The VM's way out. It outlives the daemon closed, without what it held."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.passing = True
        self._shut = False  # for good: this side was fenced
        self._held: list[tuple[int, int | None]] = []  # clock, epoch once it is marked

    def emit(self, clock: int) -> None:
        if self.passing:
            self._world.speak(clock)
        else:
            self._held.append((clock, None))

    def hold(self) -> None:
        self.passing = False

    def mark(self, epoch: int) -> None:
        self._held = [(clock, epoch if marked is None else marked) for clock, marked in self._held]

    def release(self, epoch: int) -> None:
        assert not self._shut, f"epoch {epoch} is released by a fenced side"
        going = [clock for clock, marked in self._held if marked is not None and marked <= epoch]
        self._held = self._held[len(going) :]
        for clock in going:
            self._world.speak(clock)

    def open_all(self) -> None:
        assert not self._shut, "a fenced side opens its gate"
        self.passing = True
        for clock, _ in self._held:
            self._world.speak(clock)
        self._held = []

    def lose_held(self) -> None:
        self._held = []

    def shut(self) -> None:
        self._shut = True
        self._held = []

    @property
    def held(self) -> int:
        return len(self._held)


class Primary:
    """The host daemon and its session. `None` in `pipeline`: the daemon is down, or protects nothing."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.disk = Disk(world)
        self.gate = Gate(world)
        self.pipeline: Pipeline | None = None
        self.crash()

    @property
    def state(self) -> PrimaryState | None:
        return self.pipeline.state if self.pipeline else None

    @property
    def cutting(self) -> bool:
        """Whether the initial copy is done, so that epochs are cut."""
        return self.welcomed and not self.to_seed and not self.gate.passing

    def crash(self) -> None:
        """The daemon dies: its connection and what the gate held go with it."""
        if self.pipeline is not None and self.stream is not None:
            self.stream.close()
        if not self.gate.passing:
            self.gate.lose_held()
        self.pipeline = None
        self.stream: End | None = None
        self.hello_sent = self.welcomed = self.was_protected = False
        self.outbox = Outbox()
        self.to_seed: list[int] = []
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
        cell = self.to_seed.pop()
        self._must_stream().send(FrameType.PAGES, self._must().term, 0, self._delta(cell))
        if not self.to_seed:
            self.disk.save("protected", self._must().term)
            self.gate.hold()

    def cut_epoch(self) -> None:
        pipeline, guest = self._must(), self._world.guest
        epoch = pipeline.next_epoch()
        if epoch is None:
            return
        self.gate.mark(epoch)
        changed = [cell for cell in range(CELLS) if guest.memory[cell] != self.shadow[cell]]
        frames = [(FrameType.PAGES, self._delta(cell)) for cell in changed]
        frames.append((FrameType.DEVICES, struct.pack("<Q", guest.clock)))
        size = sum(len(payload) for _, payload in frames)
        commit = (FrameType.COMMIT, pack(Commit(len(frames), size, [])))
        self._world.cuts[pipeline.term, epoch] = (tuple(guest.memory), guest.clock)
        pipeline.cut(epoch)
        self.to_ship.append(EpochFrames(epoch, [*frames, commit], size))

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
        pipeline, connection = self._must(), Connection()
        self._world.connecting.append(connection)
        self.stream, self.hello_sent = End(connection, is_agent=False), True
        hello = Hello("1", "alpha", "vm", "u", pipeline.term, resume, 0, "q35", "", [], [], 50, "10")
        self.stream.send(FrameType.HELLO, pipeline.term, 0, pack(hello))

    def _act(self, frame: Frame) -> None:
        pipeline = self._must()
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
            self._fenced() if refuse.fenced else self._renounced()
        elif frame.type is FrameType.RENOUNCE:
            self._renounced()
        else:
            raise AssertionError(f"the agent sends {frame.type.name}")

    def _welcome(self, welcome: Welcome) -> None:
        pipeline, stream = self._must(), self._must_stream()
        if not welcome.resumed:
            self.disk.save("protected" if self.was_protected else "seeding", welcome.term)
            pipeline.begin(welcome.term)
            self.welcomed, self.to_seed = True, list(range(CELLS))
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
        self.outbox.attach(stream, welcome.term, welcome.committed)  # type: ignore[arg-type]

    def _lost(self) -> None:
        pipeline = self._must()
        self.outbox.detach()
        if self.stream is not None:
            self.stream.close()
        self.stream, self.hello_sent = None, False
        pipeline.lost()
        if pipeline.state is not PrimaryState.HELD:
            self._abandon()

    def _abandon(self) -> None:
        """protect() failed before an epoch went out. A welcome means that no earlier replica is left."""
        safe = self.welcomed or not self.was_protected
        assert self._must().captured == 0
        self._must().end()
        self.crash()
        if safe:
            self._open()

    def _renounced(self) -> None:
        """The agent cannot take over."""
        self._must().end()
        self.crash()
        self._open()

    def _open(self) -> None:
        """Output flows; recorded only then, for a daemon that dies in between must still know that it was held."""
        self.gate.open_all()
        self.disk.save("none", self.disk.term)

    def _fenced(self) -> None:
        self._must().fence(0)  # who refuses a resume does not always say its term
        self.gate.shut()
        if self.stream is not None:
            self.stream.close()
        self.stream = None
        self.disk.save("fenced", self._must().term)

    def _delta(self, cell: int) -> bytes:
        now = self._world.guest.memory[cell]
        payload = CELL.pack(cell, now ^ self.shadow[cell])
        self.shadow[cell] = now
        return payload

    def _must(self) -> Pipeline:
        assert self.pipeline is not None
        return self.pipeline

    def _must_stream(self) -> End:
        assert self.stream is not None
        return self.stream


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
        self.core = Standby(self.disk.term, self.disk.role in ("promoting", "promoted"))
        self._forget_replica()
        self.promoting = False

    # --- steps ---

    def accept(self) -> None:
        """Take the next connection."""
        end = End(self._world.connecting.popleft(), is_agent=True)
        self.greeting.append(end)
        self._ends.append(end)

    def greet(self) -> None:
        """Read HELLO and answer. A new session's term is durable before it is used."""
        core, stream = self._must(), self.greeting[self.which % len(self.greeting)]
        try:
            frame = stream.receive()
        except PeerUnreachable:
            self.greeting.remove(stream)
            return
        if frame is None:
            return
        self.greeting.remove(stream)
        hello = unpack(Hello, frame.payload)
        answer = core.hello(hello.term, hello.resume)
        if isinstance(answer, Refusal):
            if core.state is StandbyState.EMPTY:
                self._give_up()
            stream.send(FrameType.REFUSE, 0, 0, pack(Refuse(answer.reason, "", answer.term, answer.fenced)))
            return
        self._drop_stream()
        if not answer.resumed:
            self.disk.save("standby", answer.term)
            self._world.use_term(answer.term, self.disk.term)
            core.begin(answer.term)
            self._forget_replica()
        self.inbox.clear()
        self.stream = stream
        welcome = Welcome("1", "beta", answer.term, answer.committed, answer.resumed, 500)
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
        except PeerUnreachable as exc:
            self._lost(exc)

    def commit(self) -> None:
        """Commit what a session's thread gathered; meanwhile others may have promoted, or begun a new session."""
        core = self._must()
        end, whole = self.gathered.pop(0)
        new, before = whole.epoch > core.committed, core.state
        if not core.commit(whole.term, whole.epoch):
            return
        assert whole.term == core.term and before in (StandbyState.SEEDING, StandbyState.READY)
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
        core, whole = self._must(), self.to_apply.popleft()
        for frame in whole.frames:
            self._apply(frame)
        core.moved(whole.epoch)
        assert (tuple(self.memory), self.clock) == self._world.cuts[whole.term, whole.epoch]

    def promote(self) -> None:
        """Decide to take over, if that is possible: durable first, then used."""
        core = self._must()
        if core.promotable() is not None:
            return
        term = core.term + 1
        self.disk.save("promoting", term)
        self._world.use_term(term, self.disk.term)
        self.promoted_from = (core.term, core.promote(term))
        self.promoting = True
        self._drop_stream()

    def resume(self) -> None:
        """The last committed epoch is applied: let the VM run."""
        if self.to_apply:
            return self.apply_one()
        core = self._must()
        assert core.applied == self.promoted_from[1]
        assert (tuple(self.memory), self.clock) == self._world.cuts[self.promoted_from]
        self._world.resume(self.clock)
        self.promoting = False
        self.disk.save("promoted", core.term)

    # --- what follows from what was heard ---

    def _take(self, frame: Frame) -> None:
        core, stream = self._must(), self.stream
        assert stream is not None
        if not core.accepts(frame.term):
            return self._drop_stream()
        if frame.type in BULK and frame.epoch == 0:
            self._apply(frame)
        elif frame.type in BULK:
            self.inbox.add(frame)
        elif frame.type is FrameType.COMMIT:
            self.gathered.append((stream, self.inbox.close(frame)))
        elif frame.type is FrameType.BYE:
            self._give_up()
            stream.send(FrameType.RENOUNCE, frame.term, 0, pack(Notice("bye")))
        else:
            raise AssertionError(f"the primary sends {frame.type.name}")

    def _lost(self, exc: Exception) -> None:
        stream, self.stream = self.stream, None
        self.inbox.clear()
        if self._must().state is StandbyState.SEEDING:
            self._give_up()
            if stream is not None and not stream.closed:
                stream.send(FrameType.RENOUNCE, self._must().term, 0, pack(Notice(str(exc))))
        if stream is not None:
            stream.close()

    def _give_up(self) -> None:
        self._must().renounce()
        self._forget_replica()
        self.disk.save("none", self._must().term)

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

    def _must(self) -> Standby:
        assert self.core is not None
        return self.core
