# SPDX-License-Identifier: Apache-2.0
"""A small world for the whole life of one VM on hosts that take turns: its clients, the network, the arbiter.

The decisions are made by the real `Pipeline`, `Standby`, `ownership` rules and `register.claim`; `Host`
(ownership_host) and `Agent` (ownership_agent) are what the daemons do around them, one step at a time.

A VM executes numbered events; what it has executed is its state, a set of bits. A packet carries the state that it
may depend on. So 'what clients have seen' can be compared with 'what the VM knows'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from remusdb.arbiter import register
from remusdb.core.ownership import Claim, Ownership, Rule, Verdict
from remusdb.errors import ArbiterSilent, ArbiterUnreachable

if TYPE_CHECKING:
    from tests.model.ownership_session import Host


@dataclass(frozen=True)
class Message:
    """One frame; `state` is an epoch's content, `flag` what the kind makes of it."""

    kind: str
    term: int = 0
    epoch: int = 0
    state: int = 0
    resume: bool = False
    fenced: bool = False
    renounced: bool = False
    owner: str = ""


@dataclass(eq=False)
class Connection:
    """From a host daemon to another host's agent. What is under way may still arrive after the cut."""

    primary: str
    agent: str
    to_agent: list[Message] = field(default_factory=list)
    to_primary: list[Message] = field(default_factory=list)
    cut: bool = False


@dataclass(eq=False)
class Vm:
    """A VM that runs, or is stopped for a switchover, on one host. Its gate outlives the host daemon's worker."""

    number: int
    base: int  # what it knew when it was started
    state: int
    running: bool = True
    held: list[tuple[int, int | None]] | None = None  # state, epoch once marked; None: the gate is open


class Died(Exception):
    """A process was killed in the middle of a step."""


class Store:
    """What the daemons of one host share and never forget (`remusdb/state.py`)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.role, self.term, self.owner, self.peer = "none", 0, "", ""
        self.armed = self.wanted = False

    def save(self, **changes: str | int | bool) -> None:
        self._world.instant()
        assert int(changes.get("term", self.term)) >= self.term, f"term {changes['term']} after {self.term}"
        for name, value in changes.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self._world.instant()

    def __repr__(self) -> str:
        return f"{self.role} term {self.term} owner {self.owner or '-'}{' armed' if self.armed else ''}"


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
        self._asks = host
        self._world.instant()
        claim = register.claim(self, rule)
        self._world.instant()
        return claim

    def look(self, host: str) -> Claim:
        """Read only: UNREACHED, or WON with the record."""
        self._asks = host
        try:
            return Claim(Verdict.WON, self.read()[0])
        except ArbiterUnreachable:
            return Claim(Verdict.UNREACHED, None)

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
        self.arbiter = Arbiter(self) if arbiter else None
        self.seen = 0  # everything that a packet which left any host depended on
        self.events = self.starts = 0
        self.newest: Vm | None = None
        self.link_down = False
        self.fuse: int | None = None  # so many instants around durable writes and claims from now, the process dies
        self.hellos: list[tuple[str, str, Message]] = []  # all that were ever sent: from, to
        self.log: list[str] = []
        self.hosts = {name: make(self, name) for name in names}

    def dice(self, sides: int) -> int:
        return next(self._dice, sides - 1) % sides

    def instant(self) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = None
                raise Died

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
        free = [host.vm for host in self.hosts.values() if host.vm and host.vm.running and host.vm.held is None]
        assert len(free) <= most, "two VMs speak freely"
        assert all(vm is self.newest for vm in free), "a VM that was replaced speaks freely"

    def send(self, queue: list[Message], connection: Connection, message: Message) -> None:
        """What is written after the cut is lost without a word."""
        if self.link_down:
            connection.cut = True
        if not connection.cut:
            queue.append(message)
