# SPDX-License-Identifier: Apache-2.0
"""When the next epoch is cut. No clock, thread or file: it is told what is so, and says to cut or to wait.

    fixed      every `epoch_s`
    on demand  output waits    ─ the guest has become idle: nothing more will come ─▶ cut
                               ─ the guest works on: `gap_s` after the last cut, and
                                 no more than `busy_pause_share` of its time goes,
                                 but `epoch_s` after the last cut at the latest ────▶ cut
               nothing waits   ─ the guest has worked for `epoch_s` since the cut ──▶ cut   (its dirty pages grow)
                               ─ `epoch_max_s` are over ────────────────────────────▶ cut

On demand, no cut is made before the last one's epoch is committed, unless the backup takes longer for that than
`gap_s`; and none so early that the VM would stand still for more than `max_pause_share` of the time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

LOOK_S = 0.001  # how often a guest that works on while output waits is looked at
PAUSES = 9  # the median of so many says what a cut costs: one that waited for the host's CPU is no dear cut
LOOK_SHARE = 0.1  # of the time that output has waited: so much later, at most, is it seen that the guest is idle
SETTLE_S = 0.0005  # from the first frame of output to a cut: what belongs to it follows at once


class Why(StrEnum):
    """Why an epoch was cut when it was."""

    CLOCK = "clock"  # a fixed clock
    OUTPUT = "output"  # output waited, and the guest was idle
    GAP = "gap"  # output waited while the guest worked on
    WORK = "work"  # the guest had worked for so long
    IDLE = "idle"  # nothing happened for so long
    DISK = "disk"  # a disk's write log was full
    LAST = "last"  # the VM was stopped for a switchover


@dataclass(frozen=True)
class Pace:
    """The settings. All in seconds; the share is of all time."""

    on_demand: bool
    epoch_s: float
    epoch_max_s: float
    gap_s: float
    max_pause_share: float
    busy_pause_share: float


@dataclass(frozen=True)
class Seen:
    """What is so now. `output_s`: for how long output has waited, None where none does."""

    output_s: float | None
    busy: bool  # a vCPU ran for much of the last moment
    worked_s: float  # for so long the busiest vCPU ran since the last cut
    committed: bool  # the last epoch that was cut
    pressed: bool = False  # a disk's write log is full


@dataclass(frozen=True)
class Cut:
    """Cut now."""

    why: Why


@dataclass(frozen=True)
class Wait:
    """Nothing is due before so many seconds have passed, unless output comes or an epoch is committed."""

    seconds: float


class Cadence:
    """Of one VM's epochs. Times are of one clock that never goes back, in seconds."""

    def __init__(self, pace: Pace, now: float) -> None:
        """The first epoch is due at once."""
        self._pace = pace
        self._began = now - pace.epoch_max_s - pace.epoch_s
        self._due = now  # of the fixed clock
        self._earliest = self._earliest_busy = now  # for the sake of the shares
        self._pauses: deque[float] = deque(maxlen=PAUSES)

    def cut(self, began: float, ended: float) -> None:
        """An epoch was cut: the VM stood still from `began` on, until `ended` at the latest."""
        pace = self._pace
        self._began = began
        # A fixed clock does not make up for what it was late, but by half.
        self._due = max(self._due + pace.epoch_s, began + pace.epoch_s / 2)
        self._earliest = began + (ended - began) / pace.max_pause_share
        self._pauses.append(ended - began)
        wanted = max(pace.gap_s, median(self._pauses) / pace.busy_pause_share)
        # Later than a fixed clock's cut, all who wait would lose more than the guest could win.
        self._earliest_busy = began + min(wanted, max(pace.gap_s, pace.epoch_s))

    def look(self, now: float, seen: Seen) -> Cut | Wait:
        """Whether to cut now."""
        if seen.pressed:
            return Cut(Why.DISK)
        if not self._pace.on_demand:
            return _at(self._due, now, Why.CLOCK)
        over = self._began + self._pace.gap_s
        if not seen.committed and now < over:
            return Wait(over - now)
        if now < self._earliest:
            return Wait(self._earliest - now)
        return self._quiet(now, seen) if seen.output_s is None else self._output(now, seen, seen.output_s)

    def _output(self, now: float, seen: Seen, waited_s: float) -> Cut | Wait:
        if waited_s < SETTLE_S:
            return Wait(SETTLE_S - waited_s)
        if not seen.busy:
            return Cut(Why.OUTPUT)
        if now >= self._earliest_busy:
            return Cut(Why.GAP)
        # Each look costs the host something, which the guest could have: the longer it works, the fewer.
        return Wait(min(self._earliest_busy - now, max(LOOK_S, waited_s * LOOK_SHARE)))

    def _quiet(self, now: float, seen: Seen) -> Cut | Wait:
        left = self._pace.epoch_s - seen.worked_s
        if left <= 0:
            return Cut(Why.WORK)
        due = self._began + self._pace.epoch_max_s
        return Cut(Why.IDLE) if now >= due else Wait(min(due - now, max(left / 4, LOOK_S)))


def _at(due: float, now: float, why: Why) -> Cut | Wait:
    return Cut(why) if now >= due else Wait(due - now)
