# SPDX-License-Identifier: Apache-2.0
"""A small world to run the epoch protocol in: a guest, its gate, two hosts with a disk each, a network.

The decisions are made by the real `Pipeline`, `Standby`, `Outbox` and `Inbox`; `Primary` (epoch_primary) and `Agent`
(epoch_agent) are what is left of `remusdb/worker/session.py` and `remusdb_agents/replica.py` when threads, QEMU and
sockets are taken away: every method is one step, and between any two the other side may act, or a process may die.

A guest's memory is a few cells. Every write stores the next number of one clock, and every packet carries the
newest number it may depend on, so that 'what was spoken' and 'what the backup knows' can be compared.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remusdb.core.wire import Frame, FrameType
from remusdb.errors import PeerUnreachable

if TYPE_CHECKING:
    from tests.model.epoch_agent import Agent
    from tests.model.epoch_primary import Primary

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
        self.owner = ""

    def save(self, role: str, term: int, owner: str | None = None) -> None:
        """`owner`: who owns the VM in `term`, None to leave that as it is."""
        self._world.instant()
        self.role, self.term = role, term
        self.owner = self.owner if owner is None else owner
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

    def __init__(self, primary: Callable[[World], Primary], agent: Callable[[World], Agent]) -> None:
        self.guest = Guest()
        self.connecting: deque[Connection] = deque()  # not yet accepted by the agent
        self.spoken = 0  # the newest number in a packet that clients have seen
        self.resumed: int | None = None  # the promoted VM's clock when it was resumed
        self.terms: list[int] = []  # in the order of their first use
        self.fuse: int | None = None  # so many instants around durable writes from now, the writer dies
        self.cuts: dict[tuple[int, int], tuple[Memory, int]] = {}
        self.acks: list[Frame] = []  # all that were ever sent
        self.primary = primary(self)
        self.agent = agent(self)

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
