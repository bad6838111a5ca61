# SPDX-License-Identifier: Apache-2.0
"""Three hosts, one VM, and a register that loses, delays and half answers what it is asked.

The claims are the product's (`remusdb.arbiter.register.claim` with the rules of `core.ownership`); the hosts around
them are the least that a correct host does. `said` counts what clients were told; `has` is what a host's VM, or its
replica, knows of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from remusdb.arbiter import register
from remusdb.core.ownership import Ownership, Rule, Verdict, give_back, go_solo, open_session, take_over
from remusdb.errors import ArbiterSilent, ArbiterUnreachable

# seed: its replica is being made; silent: runs the VM, or did, and does not speak.
Role = Literal["idle", "seed", "standby", "taking", "taken", "giving", "alone", "opening", "session", "solo", "silent"]
Fault = Literal["none", "unsent", "lost", "late", "mute"]  # mute: done, and not answered
Race = tuple[int, int]  # which other host does which of its steps first
Script = list[tuple[Fault, Race | None]]


@dataclass
class Host:
    """What a host durably knows. In `opening`, `term` is the one it owns already, `offered` the new session's."""

    name: str
    role: Role = "idle"
    term: int = 0  # of its session, of the session of its replica, or in which it is alone
    newest: int = 0  # that it ever used
    other: str = ""  # the session's other host
    offered: int = 0
    has: int = 0
    gone: bool = False  # its VM was destroyed
    unsure: bool = False  # a claim of its role was made, and is neither won nor lost
    busy: bool = False


class SimRegister:
    """Linearizable, like etcd. A swap that was sent may apply at any later time, in any order."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.record: Ownership | None = None
        self.revision = 0  # of the record
        self.late: list[tuple[int, Ownership]] = []
        self.script: Script = []
        self._newest = 0

    def read(self) -> tuple[Ownership | None, int]:
        if self._fault() != "none":
            raise ArbiterUnreachable("no answer")
        return self.record, self.revision

    def swap(self, revision: int, new: Ownership) -> bool:
        fault = self._fault()
        if fault == "unsent":
            raise ArbiterUnreachable("not sent")
        if fault == "late":
            self.late.append((revision, new))
        done = self.apply(revision, new) if fault in ("none", "mute") else False
        if fault != "none":
            raise ArbiterSilent("no answer")
        return done

    def apply(self, revision: int, new: Ownership | None) -> bool:
        if revision != self.revision:
            return False
        if new and self.record:
            assert new.term >= self.record.term + bool(new.owner), f"{self.record} became {new}"
        self.record = new
        self._newest += 1
        self.revision = self._newest if new else 0
        return True

    def _fault(self) -> Fault:
        if not self.script:
            return "none"
        fault, race = self.script.pop(0)
        if race:
            rest, self.script = self.script, []
            self._world.step(*race)
            self.script = rest
        return fault


class World:
    """The hosts' steps, and what must hold after each."""

    def __init__(self) -> None:
        self.hosts = [Host("a", "alone"), Host("b"), Host("c")]
        self.register = SimRegister(self)
        self.said = 0
        self.forgetful = False  # the host of the step at hand dies before it learns what became of its claim

    def step(self, host: int, choice: int) -> None:
        """One of the steps that are open to a host now."""
        one = self.hosts[host]
        steps = self.steps(one)
        if steps and not one.busy:
            one.busy = True
            try:
                steps[choice % len(steps)]()
            finally:
                one.busy = False
        self.check()

    def check(self) -> None:
        """At most one speaker; it knows all that was ever said, and the record allows what it believes."""
        speakers = [one for one in self.hosts if self.speaks(one)]
        assert len(speakers) <= 1, f"two speak: {speakers}, {self.register.record}"
        for one in speakers:
            assert one.has == self.said, f"{one} lost what was said"
            record = self.register.record
            assert record is None or record.owner == one.name, f"{one} speaks, {record}"
            # Else its backup could not take over, and "protected" would be a lie.
            assert one.role != "session" or record == Ownership(one.name, one.term), f"{one} is not protected, {record}"

    def speaks(self, one: Host) -> bool:
        """Whether its output may leave: freely, or because its backup acknowledges."""
        return one.role in ("alone", "opening") or (one.role == "session" and self._acknowledged(one))

    def _acknowledged(self, one: Host) -> bool:
        backup = self._named(one.other)
        return (backup.role, backup.other, backup.term) == ("standby", one.name, one.term)

    def steps(self, one: Host) -> list[Callable[[], None]]:
        """What a correct host may do in its role, at any time and for any reason."""
        if one.role == "idle":
            return []
        if one.role == "alone":
            peers = [peer for peer in self.hosts if peer is not one and peer.role in ("idle", "standby", "silent")]
            offers = [lambda peer=peer: self._offer(one, peer) for peer in peers if not peer.busy]
            return [lambda: self._speak(one), *offers, *([self._forget] if self._undisputed(one) else [])]
        if one.role == "silent":
            running = any(other.role == "alone" for other in self.hosts)
            return [lambda: self._begin_anew(one), *([lambda: self._destroy(one)] if running else [])]
        return {
            "seed": [lambda: self._become(one, "idle")],
            "standby": [lambda: self._become(one, "taking"), lambda: self._become(one, "idle")],
            "taking": [lambda: self._take_over(one)],
            "taken": [lambda: self._become(one, "alone"), lambda: self._become(one, "giving")],
            "giving": [lambda: self._give_back(one)],
            "opening": [lambda: self._open(one), lambda: self._speak(one), lambda: self._become(one, "alone")],
            "session": [lambda: self._speak(one), lambda: self._become(one, "solo")],
            "solo": [lambda: self._go_solo(one)],
        }[one.role]

    def _become(self, one: Host, role: Role) -> None:
        one.role, one.unsure = role, False

    def _speak(self, one: Host) -> None:
        if one.role == "session" and not self._acknowledged(one):
            return
        self.said += 1
        one.has = self.said
        if one.role == "session":
            self._named(one.other).has = self.said

    def _offer(self, one: Host, peer: Host) -> None:
        """HELLO and WELCOME: a term newer than any of both, on both disks before it is used."""
        term = max(one.newest, peer.newest) + 1
        one.role, one.other, one.offered, one.newest = "opening", peer.name, term, term
        peer.role, peer.other, peer.term, peer.newest, peer.gone = "seed", one.name, term, term, True

    def _open(self, one: Host) -> None:
        verdict = self._claim(one, open_session(one.name, one.offered))
        assert verdict is not Verdict.LOST, f"{one} owns the VM and was refused: {self.register.record}"
        if verdict is Verdict.WON:
            backup = self._named(one.other)
            one.term = one.offered
            if (backup.role, backup.other, backup.term) == ("seed", one.name, one.term):
                one.role, backup.role, backup.has = "session", "standby", one.has
            else:
                one.role = "alone"

    def _take_over(self, one: Host) -> None:
        verdict = self._claim(one, take_over(one.name, one.other, one.term))
        if verdict is Verdict.WON:
            one.role, one.term, one.gone = "taken", one.term + 1, False
            one.newest = max(one.newest, one.term)
        elif verdict is not Verdict.UNKNOWN:
            one.role = "idle" if verdict is Verdict.LOST else "standby"

    def _give_back(self, one: Host) -> None:
        if self._claim(one, give_back(one.name, one.other, one.term)) in (Verdict.WON, Verdict.LOST):
            one.role = "idle"

    def _go_solo(self, one: Host) -> None:
        verdict = self._claim(one, go_solo(one.name, one.term))
        if verdict is Verdict.WON:
            one.role, one.term = "alone", one.term + 1
            one.newest = max(one.newest, one.term)
        elif verdict is not Verdict.UNKNOWN:
            one.role = "silent" if verdict is Verdict.LOST else "session"

    def _begin_anew(self, one: Host) -> None:
        """A host that was refused looks whether the VM is its own all the same, as when it was given back."""
        record = self.register.record
        if record is None or one.gone or one.name != (record.owner or record.previous):
            return
        one.newest = max(one.newest, record.term) + 1
        term = one.newest
        if self._claim(one, open_session(one.name, term)) is Verdict.WON:
            one.role, one.term = "alone", term

    def _destroy(self, one: Host) -> None:
        one.role, one.gone = "idle", True

    def _undisputed(self, one: Host) -> bool:
        return all(other is one or other.role == "idle" for other in self.hosts)

    def _forget(self) -> None:
        """An operator removes the key, as a refusal's hint tells."""
        self.register.apply(self.register.revision, None)

    def _claim(self, one: Host, rule: Rule) -> Verdict:
        before, one.unsure = one.unsure, True  # durable before the claim: who dies in it finds it so
        with self._no_memory():
            verdict = register.claim(self.register, rule).verdict
        if self.forgetful or verdict is Verdict.UNKNOWN or (verdict is Verdict.UNREACHED and before):
            return Verdict.UNKNOWN
        one.unsure = False
        return verdict

    @contextmanager
    def _no_memory(self) -> Iterator[None]:
        """Only the host of this claim dies, not those that race with it."""
        forgetful, self.forgetful = self.forgetful, False
        try:
            yield
        finally:
            self.forgetful = forgetful

    def _named(self, name: str) -> Host:
        return next(one for one in self.hosts if one.name == name)
