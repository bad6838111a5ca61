# SPDX-License-Identifier: Apache-2.0
"""A switchover of one VM: stop it, commit one last epoch, ask the agent to go on.

    STOPPING ──cut──▶ COMMITTING ──acknowledged──▶ ASKED ──no answer──▶ UNANSWERED
        └────────────────┴──── off: the VM runs on here ────┴───────────────┘

Invariant: that the VM is stopped for this is on the disk before it is, so that whoever comes after a crash starts it
again, unless another host owns it by then. While it is being stopped nobody starts it: that is waited for.
"""

from __future__ import annotations

from enum import Enum

from remusdb.core import primary_effects as effects
from remusdb.core.primary_effects import Effect, Steps
from remusdb.errors import RefusedForSafety, RemusError

COMMIT_S = 10.0  # the last epoch: shipped, acknowledged
ANSWER_S = 30.0  # the agent resumes the VM before it answers


class Stage(Enum):
    """Of a switchover that is under way."""

    STOPPING = "stopping"  # the VM is being stopped and cut
    COMMITTING = "committing"  # it stands still, and its last epoch is not acknowledged yet
    ASKED = "asked"  # the agent may take over; whoever asked for the move waits
    UNANSWERED = "unanswered"  # so it may still, but nobody waits any more


class Switch:
    """One switchover, from an operator's order until the VM runs on one of the two hosts."""

    def __init__(self, vm: str, peer: str, still: bool) -> None:
        """`still`: the VM stood still before, by somebody's will, and goes on standing still."""
        self.stage = Stage.STOPPING
        self.over = False
        self._vm, self._peer, self._still = vm, peer, still
        self._epoch = 0  # the last one
        self._called_off = ""  # why, while it was being stopped

    def begin(self) -> Steps:
        """Stop the VM."""
        yield effects.Save({"paused": not self._still})
        yield effects.StopAndCut()

    def cut(self, epoch: int, committed: int) -> Steps:
        """The VM stands still, and `epoch` holds all of it."""
        self.stage, self._epoch = Stage.COMMITTING, epoch
        if self._called_off:
            yield from self.call_off(self._called_off)
            return
        yield effects.SetTimer("commit", COMMIT_S)
        yield from self.committed(committed)

    def not_cut(self, why: str) -> Steps:
        """Stopping it failed."""
        self.stage = Stage.COMMITTING
        yield from self.call_off(self._called_off or why)

    def committed(self, epoch: int) -> Steps:
        """The agent holds everything up to `epoch`."""
        if self.stage is Stage.COMMITTING and epoch >= self._epoch:
            self.stage = Stage.ASKED
            yield effects.SayTakeOver()
            yield effects.SetTimer("answer", ANSWER_S)

    def not_committed(self) -> Steps:
        """COMMIT_S is over."""
        if self.stage is Stage.COMMITTING:
            yield from self.call_off(f"epoch {self._epoch} was not acknowledged within {COMMIT_S:g} s")

    def unanswered(self) -> Steps:
        """ANSWER_S is over: the agent may have taken over."""
        if self.stage is Stage.ASKED:
            self.stage = Stage.UNANSWERED
            why = f"{self._peer} does not answer; the VM stays stopped until it does"
            yield effects.Answer("switchover", RefusedForSafety(why, hint=f"see: remusdb status {self._vm}"))

    def call_off(self, why: str, *, at_once: bool = False) -> Steps:
        """The agent cannot be taking over any more: the VM runs on here. `at_once`: nothing more is cut anyway."""
        if self.stage is Stage.STOPPING and not at_once:
            self._called_off = why
            return
        self.over = True
        if not self._still:
            yield from start_vm()
        yield effects.CutOn()
        if self.stage is not Stage.UNANSWERED:
            why = f"{self._peer} does not take the VM over, which runs on here: {why}"
            yield effects.Answer("switchover", RefusedForSafety(why))


def start_vm() -> Steps:
    """A VM that was stopped for a switchover runs on."""
    yield from if_possible(effects.StartVm())
    yield from if_possible(effects.Save({"paused": False}))


def if_possible(effect: Effect) -> Steps:
    """What is worth a try, and no reason not to go on."""
    try:
        yield effect
    except RemusError:
        pass
