# SPDX-License-Identifier: Apache-2.0
"""A small world for the whole life of one VM on hosts that take turns: its clients, the network, the arbiter.

What decides is the product: `core/primary.py`, `core/backup.py`, `host/reconcile.py`, the rules of ownership and
`register.claim`, with the real `Outbox` and `Inbox` between them. What performs their effects is here, one step at a
time (`primary_host.py`, `backup_host.py`): between any two steps another process may act, or this one may die, also
around each durable write and each question to the arbiter.

A VM executes numbered events; what it has executed is its state, a set of bits, spread over a few cells of memory. A
packet carries the state that it may depend on. So 'what clients have seen' can be compared with 'what the VM knows'.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from remusdb.arbiter import register
from remusdb.core.ownership import Claim, Ownership, Rule
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import ArbiterSilent, ArbiterUnreachable, PeerUnreachable
from remusdb.names import require_name
from remusdb.state import VmState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.model.hosts import Host

CELLS = 3
VM = require_name("vm")
UUID = "0f3c1a52-8f0e-4d0a-9b60-3f1c2d4e5a6b"


class Died(BaseException):
    """A process was killed in the middle of a step."""


@dataclass(eq=False)
class Connection:
    """From a host's worker to another host's agent, in order. What is under way may still arrive after the cut."""

    line: int
    primary: str
    agent: str
    to_agent: deque[Frame] = field(default_factory=deque)
    to_primary: deque[Frame] = field(default_factory=deque)
    cut: bool = False


class End:
    """One side's stream, as the product's code uses it. What is written after the cut is lost without a word."""

    def __init__(self, world: World, connection: Connection, *, is_agent: bool) -> None:
        self.connection = connection
        self._world = world
        self._out = connection.to_primary if is_agent else connection.to_agent

    def send(self, type: FrameType, term: int, epoch: int, payload: bytes = b"") -> None:
        """PeerUnreachable once this side is closed."""
        if self._world.link_down:
            self.connection.cut = True
        if not self.connection.cut:
            self._out.append(Frame(type, term, epoch, payload))

    def send_many(self, frames: Iterator[tuple[FrameType, int, int, bytes]]) -> None:
        for frame in frames:
            self.send(*frame)

    def close(self) -> None:
        self.connection.cut = True


@dataclass(eq=False)
class Vm:
    """A VM that runs, or stands still, on one host. Its gate outlives the worker, shut."""

    number: int
    base: int  # what it knew when it was started
    state: int
    running: bool = True
    held: list[tuple[int, int | None]] | None = None  # state, epoch once marked; None: the gate is open

    def cells(self) -> list[int]:
        """Its memory."""
        return [self.state & mask(cell, self.state) for cell in range(CELLS)]


def mask(cell: int, state: int) -> int:
    """The bits of events that cell number `cell` remembers."""
    return sum(1 << bit for bit in range(cell, state.bit_length(), CELLS))


class Store:
    """What the daemons of one host share and never forget (`remusdb/state.py`)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.state = VmState(vm=VM)

    def save(self, **changes: Any) -> None:
        """Dies before it, after it, or not at all."""
        self._world.instant()
        new = msgspec.structs.replace(self.state, **changes)
        assert new.term >= self.state.term, f"term {new.term} after {self.state.term}"
        self.state = new
        self._world.instant()

    def __repr__(self) -> str:
        it = self.state
        return f"{it.role} term {it.term} owner {it.owner or '-'}{' armed' * it.armed}{' wanted' * it.wanted}"


class Arbiter:
    """One etcd key, as a register: a request or its answer may be lost, and a lost request may apply late."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.record: Ownership | None = None
        self.revision = 0
        self.late: list[tuple[int, Ownership | None]] = []  # swaps that were sent and may apply at any time
        self.trouble: dict[str, str] = {}  # host -> "down", "lossy"
        self._asks = ""

    def claim(self, host: str, rule: Rule) -> Claim:
        """As the product's `Arbiter.claim`."""
        self._asks = host
        self._world.instant()
        claim = register.claim(self, rule)
        self._world.instant()
        return claim

    def look(self, host: str) -> Ownership | None:
        """Read only. PeerUnreachable."""
        self._asks = host
        return self.read()[0]

    def read(self) -> tuple[Ownership | None, int]:
        trouble = self.trouble.get(self._asks)
        if trouble == "down" or (trouble == "lossy" and self._world.dice(3) == 0):
            raise ArbiterUnreachable("not reached")
        return self.record, self.revision

    def swap(self, revision: int, new: Ownership | None) -> bool:
        fate = self._world.dice(5) if self.trouble.get(self._asks) == "lossy" else 4
        if fate == 0:
            raise ArbiterUnreachable("not reached")
        if fate == 1:
            self.late.append((revision, new))
            raise ArbiterSilent("no answer yet")
        applied = self.apply(revision, new)
        if fate == 2:
            raise ArbiterSilent("the answer is lost")
        return applied

    def apply(self, revision: int, new: Ownership | None) -> bool:
        if revision != self.revision:
            return False
        self.record, self.revision = new, self.revision + 1
        return True


class World:
    """Everything, and the rules that must hold whatever happens."""

    def __init__(self, make: Callable[[World, str], Host], names: str, arbiter: bool, dice: Iterator[int]) -> None:
        self._dice = dice
        self._lines = 0
        self.arbiter = Arbiter(self) if arbiter else None
        self.seen = 0  # everything that a packet which left any host depended on
        self.events = self.starts = 0
        self.newest: Vm | None = None
        self.link_down = False
        self.fuse: int | None = None  # so many instants around durable writes and claims from now, the process dies
        self.cuts: dict[tuple[int, int], int] = {}  # term, epoch: the state of its instant
        self.hellos: list[tuple[str, str, Frame]] = []  # all that were ever sent: from, to
        self.log: list[str] = []
        self.hosts = {name: make(self, name) for name in names}

    def dice(self, sides: int) -> int:
        return next(self._dice, sides - 1) % sides

    def instant(self) -> None:
        """One before and one after whatever lasts: whoever does it may die here."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = None
                raise Died

    def connect(self, primary: str, agent: str, hello: Frame) -> Connection:
        """A new connection whose first frame is under way. PeerUnreachable."""
        if self.link_down or not self.hosts[agent].agent.alive:
            raise PeerUnreachable("nobody is there")
        self._lines += 1
        connection = Connection(self._lines, primary, agent)
        connection.to_agent.append(hello)
        self.hellos.append((primary, agent, hello))
        self.hosts[agent].agent.accept(connection)
        return connection

    def start(self, state: int) -> Vm:
        """The VM begins to run somewhere: nothing that any client has seen may be missing, and nobody else speaks."""
        assert self.seen & ~state == 0, "what clients have seen is lost"
        self.check_speakers(0)
        self.starts += 1
        self.newest = Vm(self.starts, state, state)
        return self.newest

    def leave(self, vm: Vm, state: int) -> None:
        """A packet of this VM reaches the clients."""
        assert self.newest is not None
        if vm is not self.newest:
            assert state & ~self.newest.base == 0, "a replaced VM says what the one that replaced it does not know"
        self.seen |= state

    def check_speakers(self, most: int = 1) -> None:
        """Whatever was just done."""
        free = [host.vm for host in self.hosts.values() if host.vm and host.vm.running and host.vm.held is None]
        assert len(free) <= most, "two VMs speak freely"
        assert all(vm is self.newest for vm in free), "a VM that was replaced speaks freely"
        for host in self.hosts.values():
            mute = host.vm is not None and host.vm.held is not None and host.worker is None
            known = host.store.state.armed or host.store.state.role == "fenced"
            assert not mute or known, "a VM is mute, and nothing says that it is held"
