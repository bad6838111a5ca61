# SPDX-License-Identifier: Apache-2.0
"""The primary's side of the epoch protocol: what may be cut, sent again and released.

Owns the epoch counter and the list of epochs in flight of one protected VM. Invariant: an epoch is released
only after the agent acknowledged it *in the term that is in force*, and nothing is released while fenced.

    IDLE ──begin──▶ SEEDING ──first ack──▶ PROTECTED ◀──resumed── HELD ◀──stay── DECIDING
                       │ │                     └──────lost─────────▶│ ──decide─────▶│ solo
                       │ └────lost, once an epoch was cut──────────▶│               ▼
                       └──────────────fence / end─────────▶ FENCED, ENDED          SOLO

Before an epoch was cut, a copy that lost the agent waits (`away`). DECIDING asks the arbiter whether this side may go
on alone: the session is not resumed meanwhile, since the answer may be yes already.

Sans-IO: no socket, no clock. The caller makes a term durable before it calls `begin` or `fence` with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from remusdb.core.terms import reached
from remusdb.errors import BadFrame, Fenced


class PrimaryState(Enum):
    """Where the primary's session stands."""

    IDLE = "idle"
    SEEDING = "seeding"
    PROTECTED = "protected"
    HELD = "held"
    DECIDING = "deciding"
    FENCED = "fenced"
    SOLO = "solo"
    ENDED = "ended"


_LISTENING = (PrimaryState.SEEDING, PrimaryState.PROTECTED, PrimaryState.HELD)


@dataclass(frozen=True)
class Release:
    """Let go everything marked with this epoch or an earlier one."""

    epoch: int


class Pipeline:
    """Epochs of one VM on the primary, at most `window` of them in flight."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.state = PrimaryState.IDLE
        self.term = 0
        self.captured = 0
        self.committed = 0
        self.away = False  # the connection is lost while nothing was cut yet: nothing is at stake

    @property
    def in_flight(self) -> int:
        """Epochs that were cut and are not yet acknowledged."""
        return self.captured - self.committed

    def begin(self, term: int) -> None:
        """A new session in a newer term; the initial sync starts and epochs count from 1 again."""
        self._newer(term)
        self.term, self.state = term, PrimaryState.SEEDING
        self.captured = self.committed = 0
        self.away = False

    def next_epoch(self) -> int | None:
        """The number of the epoch that may be cut now, or None while the window is full or the peer lost."""
        if self.state not in (PrimaryState.SEEDING, PrimaryState.PROTECTED) or self.in_flight >= self.window:
            return None
        if self.away:
            return None
        return self.captured + 1

    def cut(self, epoch: int) -> None:
        """`epoch` was cut: gates marked, memory copied."""
        if epoch != self.captured + 1:
            raise ValueError(f"epoch {epoch} cut after {self.captured}")
        self.captured = epoch
        if self.away:  # lost while it was being cut
            self.away, self.state = False, PrimaryState.HELD

    def require_cut(self, term: int, epoch: int) -> None:
        """BadFrame for an ACK that cannot be. Any thread may ask."""
        if term == self.term and self.state in _LISTENING and epoch > self.captured:
            raise BadFrame(f"the agent acknowledges epoch {epoch}, only {self.captured} were cut")

    def ack(self, term: int, epoch: int) -> Release | None:
        """An ACK came: what to release. Acks are cumulative; those of another term are void. BadFrame."""
        self.require_cut(term, epoch)
        if term != self.term or self.state not in _LISTENING or epoch <= self.committed:
            return None
        self.committed = epoch
        if self.state is PrimaryState.SEEDING:
            self.state = PrimaryState.PROTECTED
        return Release(epoch)

    def lost(self) -> None:
        """The connection to the agent is gone; output stays held.

        Also where the first ack is still awaited: the agent may hold the first epoch, and take over.
        """
        if self.state is PrimaryState.SEEDING and not self.captured:
            self.away = True
        elif self.state in (PrimaryState.SEEDING, PrimaryState.PROTECTED):
            self.state = PrimaryState.HELD

    def resumed(self, term: int, committed: int) -> tuple[Release | None, list[int]]:
        """The agent took the same session up again: what to release, and the epochs to send once more."""
        if term != self.term or not (self.away or self.state is PrimaryState.HELD):
            raise Fenced(f"the agent answers in term {term}, this session is of term {self.term}")
        if not self.committed <= committed <= self.captured:
            raise BadFrame(f"the agent holds epoch {committed}, outside {self.committed}..{self.captured}")
        release = self.ack(term, committed)
        self.away = False
        self.state = PrimaryState.PROTECTED if self.committed else PrimaryState.SEEDING
        return release, list(range(self.committed + 1, self.captured + 1))

    def fence(self, term: int) -> None:
        """A newer term exists elsewhere: never release again. It is believed as far as one word goes."""
        self.term = reached(self.term, term)
        self.state = PrimaryState.FENCED

    def decide(self) -> None:
        """The arbiter is asked for the VM."""
        if self.state is not PrimaryState.HELD:
            raise Fenced(f"cannot go on alone: the session is {self.state.value}")
        self.state = PrimaryState.DECIDING

    def stay(self) -> None:
        """The arbiter's answer is no, or it surely never saw the question."""
        if self.state is PrimaryState.DECIDING:
            self.state = PrimaryState.HELD

    def solo(self, term: int) -> None:
        """The arbiter gave the VM to this side alone, in `term` (durable by now): no backup can take over any more."""
        if self.state is not PrimaryState.DECIDING:
            raise Fenced(f"cannot go on alone: the session is {self.state.value}")
        self._newer(term)
        self.term, self.state = term, PrimaryState.SOLO

    def end(self) -> None:
        """Protection ended in good order: the agent can no longer promote."""
        if self.state not in (PrimaryState.FENCED, PrimaryState.SOLO):
            self.state = PrimaryState.ENDED

    def _newer(self, term: int) -> None:
        if term <= self.term:
            raise Fenced(f"term {term} is not newer than {self.term}")
