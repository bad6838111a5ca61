# SPDX-License-Identifier: Apache-2.0
"""The backup's side of the epoch protocol: what is acknowledged, applied and promoted.

Owns phase, term and committed epoch of one VM on the agent. Invariant: an epoch is acknowledged only when it is held
whole, in order, in the term in force; after `decide` nothing is, and after `promote` nothing of an older term ever.

    EMPTY ─begin▶ STARTING ─up▶ SEEDING ─first commit▶ READY ◀─stay─ DECIDING ─promote▶ PROMOTING ─runs▶ PROMOTED
      ▲              │             │                     └──decide─────▶│                   │           UNSETTLED
      └────gone─── ENDING ◀──────renounce──────────────────────────────┘ ◀────give_back─────┘

STARTING: the session's term is in force, and its standby is being started. DECIDING asks the arbiter whether this side
may take over: nothing is acknowledged meanwhile, since the answer may be yes already. PROMOTING: this host has the VM
and makes it run. PROMOTED stands for every role in which this host owns it; UNSETTLED is what an agent that died while
it was PROMOTING leaves. ENDING: what was here is being taken away.

Sans-IO. Whoever calls makes the term durable *before* `begin(term)` or `promote(term)`: a term that is used
and forgotten in a crash could be used twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

from remusdb.core.terms import HELLO_JUMP_MAX, following, reached, too_far
from remusdb.errors import BadFrame, RefusedForSafety

Shown = Literal["empty", "seeding", "ready", "deciding", "promoted"]


class Phase(Enum):
    """Where the standby of one VM stands."""

    EMPTY = "empty"
    STARTING = "starting"
    SEEDING = "seeding"
    READY = "ready"
    DECIDING = "deciding"
    PROMOTING = "promoting"
    PROMOTED = "promoted"
    UNSETTLED = "unsettled"
    ENDING = "ending"

    @property
    def shown(self) -> Shown:
        """The word of status and history."""
        return _SHOWN[self]

    @property
    def moving(self) -> bool:
        """A session begins or ends: another HELLO waits."""
        return self in (Phase.STARTING, Phase.ENDING)

    @property
    def holds(self) -> bool:
        """Whether there is a standby that works."""
        return self in (Phase.SEEDING, Phase.READY, Phase.DECIDING, Phase.PROMOTING)

    @property
    def takes_over(self) -> bool:
        """Whether a takeover is under way: it may yet fail."""
        return self in (Phase.DECIDING, Phase.PROMOTING)

    @property
    def owns(self) -> bool:
        """Whether the VM is this host's."""
        return self in (Phase.PROMOTING, Phase.PROMOTED, Phase.UNSETTLED)


_SHOWN: Final[dict[Phase, Shown]] = {
    Phase.EMPTY: "empty",
    Phase.STARTING: "seeding",
    Phase.SEEDING: "seeding",
    Phase.READY: "ready",
    Phase.DECIDING: "deciding",
    Phase.PROMOTING: "promoted",
    Phase.PROMOTED: "promoted",
    Phase.UNSETTLED: "promoted",
    Phase.ENDING: "empty",
}


@dataclass(frozen=True)
class Offer:
    """Answer to a HELLO: go on in `term`. With `resumed`, the session of that term continues after `committed`."""

    term: int
    resumed: bool
    committed: int


@dataclass(frozen=True)
class Refusal:
    """Answer to a HELLO that must not be served. `fenced`: this host took the VM over, in `term`, and runs it.
    `renounced`: this side cannot take over what the asking host last had here. Neither: ask again.
    `learned`: a newer term to make durable first, if not 0; nothing of it is begun.
    """

    reason: str
    term: int
    fenced: bool = False
    renounced: bool = False
    learned: int = 0


class Standby:
    """One VM's replica on the backup; what it is made of is what the durable store knew.

    `owner`: the host that owns the VM in `term`, empty if none is known.
    """

    def __init__(self, term: int = 0, phase: Phase = Phase.EMPTY, owner: str = "") -> None:
        self.term = term
        self.owner = owner
        self.phase = phase
        self.committed = 0
        self.applied = 0

    def hello(self, primary: str, term: int, resume: bool) -> Offer | Refusal:
        """Host `primary`, which may (see `succession`), asks: the term to make durable and go on in, or why not.

        To a primary that wants to resume, a refusal that does not fence means that this side cannot take over: it
        goes on alone. So what is here of that session, or of an older one, is renounced; the thread of the
        connection that broke may still have frames in its hands that would complete it.
        """
        if self.phase is Phase.PROMOTED:
            return Refusal("this host runs the VM: it took over", self.term, fenced=True)
        if self.phase.owns:
            return Refusal("this host is taking the VM over", self.term)
        if resume and self.owner not in ("", primary):
            return Refusal(f"host {self.owner} owns the VM", self.term)
        if self.phase is Phase.DECIDING:
            return Refusal("this host is asking the arbiter whether it may take over", self.term)
        if resume:
            return self._resume(primary, term)
        if too_far(self.term, term, HELLO_JUMP_MAX):
            self.renounce()
            reason = f"host {primary} is in term {term}, this one in {self.term}: each try goes a part of the way"
            return Refusal(reason, self.term, learned=reached(self.term, term, HELLO_JUMP_MAX))
        return Offer(following(max(term, self.term)), False, 0)

    def _resume(self, primary: str, term: int) -> Offer | Refusal:
        if self.phase in (Phase.SEEDING, Phase.READY) and term == self.term:
            return Offer(self.term, True, self.committed)
        reason = "no standby of that session is here"
        if term < self.term and self.phase in (Phase.STARTING, Phase.SEEDING, Phase.READY):
            # Of the same host: its own late HELLO may have begun that one, so it is no reason to fence it.
            return Refusal(reason + ", but one of a newer session", self.term)
        if term >= self.term:
            self.renounce()
        # An older term of a host that is not known to own the VM gets no word.
        return Refusal(reason, self.term, renounced=term >= self.term or self.owner == primary)

    def begin(self, primary: str, term: int) -> None:
        """A session of `primary` starts in `term` (durable by now); before its first commit nothing can be promoted."""
        if term <= self.term:
            raise RefusedForSafety(f"term {term} is not newer than {self.term}")
        if self.phase.owns:
            raise RefusedForSafety("this host runs the VM")
        self.term, self.phase, self.owner = term, Phase.STARTING, primary
        self.committed = self.applied = 0

    def up(self) -> None:
        """Its standby is there: the initial sync may come."""
        if self.phase is not Phase.STARTING:
            raise RefusedForSafety(f"no standby is being started: it is {self.phase.value}")
        self.phase = Phase.SEEDING

    def accepts(self, term: int) -> bool:
        """Whether frames of this term may be used at all."""
        return term == self.term and self.phase in (Phase.SEEDING, Phase.READY)

    def commit(self, term: int, epoch: int) -> bool:
        """`epoch` is here, whole and checked. True: acknowledge it. False: of a void term, drop it silently."""
        if not self.accepts(term):
            return False
        if epoch <= self.committed:
            return True
        if epoch != self.committed + 1:
            raise BadFrame(f"epoch {epoch} came after {self.committed}")
        self.committed, self.phase = epoch, Phase.READY
        return True

    def moved(self, epoch: int) -> None:
        """Memory and disks of the replica are exactly `epoch` now."""
        if epoch != self.applied + 1 or epoch > self.committed:
            raise ValueError(f"epoch {epoch} applied after {self.applied}, committed {self.committed}")
        self.applied = epoch

    def promotable(self) -> str | None:
        """None when a takeover is possible, else why not."""
        if self.phase in (Phase.READY, Phase.DECIDING):
            return None
        if self.phase in (Phase.STARTING, Phase.SEEDING):
            return "the initial sync is not complete"
        return "it was already promoted" if self.phase.owns else "there is no replica here"

    def decide(self) -> None:
        """The arbiter is asked: from here on nothing is acknowledged, for its answer may be yes already."""
        if self.phase is not Phase.READY:
            raise RefusedForSafety(f"cannot take over: {self.promotable() or 'it is being decided already'}")
        self.phase = Phase.DECIDING

    def stay(self) -> None:
        """The arbiter never saw the question: follow on."""
        if self.phase is Phase.DECIDING:
            self.phase = Phase.READY

    def promote(self, term: int) -> int:
        """Take over in `term` (durable by now): the epoch to resume from. From here on no older term is served."""
        why = self.promotable()
        if why is not None:
            raise RefusedForSafety(f"cannot take over: {why}")
        if term <= self.term:
            raise RefusedForSafety(f"term {term} is not newer than {self.term}")
        self.term, self.phase = term, Phase.PROMOTING
        return self.committed

    def runs(self) -> None:
        """It is the VM now."""
        self.phase = Phase.PROMOTED

    def give_back(self, owner: str) -> None:
        """It took over, but the VM cannot be run here: `owner`, who had it before, may go on; the replica is gone."""
        self.phase, self.owner = Phase.ENDING, owner

    def renounce(self) -> None:
        """The replica is given up: this side can no longer take over in the term in force."""
        if self.phase is not Phase.EMPTY and not self.phase.owns:
            self.phase = Phase.ENDING

    def gone(self) -> None:
        """What was renounced, or given back, is taken away."""
        if self.phase is Phase.ENDING:
            self.phase = Phase.EMPTY
