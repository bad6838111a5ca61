# SPDX-License-Identifier: Apache-2.0
"""What a cut took from the guest's clocks, and what they must be for it to have lost nothing. No I/O, no clock.

QEMU notes the guest's clocks when it stops the VM and goes on from there when it starts it. Each cut therefore makes
the guest late by the time it stood still. An `Anchor` knows what a clock would be without cuts: an origin plus a clock
of the host that runs at the same rate. That is absolute, so nothing adds up: what one cut misses the next one mends.

Invariant: no clock is ever set back, nor ahead of what it would be without cuts. Time for which somebody else held
the VM (an operator's pause, an I/O error) is not given back: `ran` is false then, and the origin moves.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from remusdb.core.clock_stream import Clocks
from remusdb.errors import VmError

JUMP_NS = 1_000_000_000  # a clock that gained more than this beyond the host's was set by somebody, or is none
SLACK_NS = 1_000_000  # the two clocks are not read at the same instant
RATES = 101  # the median of so many epochs: 5 s at 50 ms
RATE_RUN_NS = 5_000_000  # an epoch shorter than this says nothing of a rate


class ClockWrong(VmError):
    """A clock is not what it can be: whatever is read there, it must not be written."""


class Anchor:
    """One clock of the guest, in ns, against one clock of the host, in ns."""

    def __init__(self, name: str, value: int, now: int) -> None:
        self._name = name
        self._origin = value - now
        self.last, self._last_at = value, now  # what it was, or was made, when it was looked at last
        self.ran = True  # until the last look, but for our own cuts

    def target(self, now: int) -> int:
        """What the clock would be, had there been no cuts."""
        return self._origin + now

    def look(self, value: int, now: int, ours_ns: int) -> int:
        """How late the clock is, in ns, never negative. `ours_ns`: for how long cuts may have held the VM since the
        last look, at most. ClockWrong when it is not where it can be."""
        elapsed, advance = now - self._last_at, value - self.last
        if not 0 <= advance <= elapsed + JUMP_NS:
            moved, most = advance / 1e6, (elapsed + JUMP_NS) / 1e6
            raise ClockWrong(
                f"{self._name} moved by {moved:.1f} ms since it was last looked at, expected 0 to {most:.1f}"
            )
        held = elapsed - advance
        self.ran = advance > 0 and held <= ours_ns + SLACK_NS
        if not self.ran:
            self._origin -= held
        self._origin = max(self._origin, value - now)  # it goes a little faster than the host's
        self.last, self._last_at = value, now
        return self.target(now) - value

    def wrote(self, value: int) -> None:
        """The clock was made this at the last look."""
        self.last = value


class Ticks:
    """QEMU's ticks, which go with its clock at the rate of the host's TSC."""

    def __init__(self, ticks: int, clock: int, ticks_per_ns: float) -> None:
        self._last, self._last_clock = ticks, clock
        self._rates: deque[float] = deque([ticks_per_ns], maxlen=RATES)
        self.per_ns = ticks_per_ns

    def look(self, ticks: int, clock: int) -> None:
        """Note both as they are at one stop. ClockWrong when they did not move together."""
        advance, passed = ticks - self._last, clock - self._last_clock
        if not 0 <= advance <= (passed + JUMP_NS) * self.per_ns:
            raise ClockWrong(f"QEMU's ticks moved by {advance} in {passed / 1e6:.1f} ms")
        self._last, self._last_clock = ticks, clock
        if passed >= RATE_RUN_NS:
            self._rates.append(advance / passed)

    def wrote(self, ticks: int, clock: int) -> None:
        """Both were made this at the last look."""
        self._last, self._last_clock = ticks, clock

    def settle(self) -> None:
        """Take the newest rates into account. Not for the stopped part of a cut."""
        self.per_ns = sorted(self._rates)[len(self._rates) // 2]  # the median; statistics.median takes 20 times as long


class Instant(NamedTuple):
    """One instant, in ns: kvmclock goes by the host's CLOCK_MONOTONIC_RAW, QEMU's clock by CLOCK_MONOTONIC."""

    mono: int
    raw: int


class Book:
    """All clocks of one guest."""

    def __init__(self, clocks: Clocks, at: Instant, ticks_per_ns: float) -> None:
        """`clocks`: what they were at a stop just before `at`: they are behind for good by what lay between."""
        self._virtual = Anchor("QEMU's clock", clocks.clock, at.mono)
        self._ticks = Ticks(clocks.ticks, clocks.clock, ticks_per_ns)
        self._kvm = None if clocks.kvmclock is None else Anchor("kvmclock", clocks.kvmclock, at.raw)
        self.ran = False
        self.late_ns = 0  # the clock that the guest keeps time by, at the last look

    def look(self, found: Clocks, at: Instant, ours_ns: int) -> Clocks:
        """What the clocks, which are `found` so at a stop, should be set to. See `Anchor.look`."""
        if (found.kvmclock is None) != (self._kvm is None):
            raise ClockWrong("the guest's kvmclock came or went")
        self._ticks.look(found.ticks, found.clock)
        late = self.late_ns = self._virtual.look(found.clock, at.mono, ours_ns)
        self.ran, kvmclock = self._virtual.ran, None
        if self._kvm is not None and found.kvmclock is not None:
            self.late_ns = self._kvm.look(found.kvmclock, at.raw, ours_ns)
            self.ran = self.ran and self._kvm.ran
            kvmclock = found.kvmclock + self.late_ns
        if not self.ran:
            return found
        return Clocks(found.ticks + round(late * self._ticks.per_ns), found.clock + late, kvmclock)

    def wrote(self, clocks: Clocks) -> None:
        """They were made this at the last look."""
        self._virtual.wrote(clocks.clock)
        self._ticks.wrote(clocks.ticks, clocks.clock)
        if self._kvm is not None and clocks.kvmclock is not None:
            self._kvm.wrote(clocks.kvmclock)

    @property
    def ticks_per_ns(self) -> float:
        """The rate of QEMU's ticks."""
        return self._ticks.per_ns

    def settle(self) -> None:
        """What need not be done while the VM is stopped."""
        self._ticks.settle()
