# SPDX-License-Identifier: Apache-2.0
"""Waits until the next epoch is due, as `core/cadence.py` decides by what the VM does.

Owns the bell at the VM's interfaces and the view of its processors. Only `wake` is for other threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from remusdb.config import Protection
from remusdb.core.cadence import LOOK_S, Cadence, Cut, Pace, Seen, Why
from remusdb.net.bell import Bell
from remusdb.vm.vcpus import Vcpus, most_s

PRESSED_LOOK_S = 0.02  # how often a full disk log is looked for while an epoch is not yet due
BUSY_SHARE = 0.25  # of a moment in which one processor ran: it works on


def pace_of(protection: Protection) -> Pace:
    """The settings as the decisions need them."""
    return Pace(
        on_demand=protection.epoch_mode == "on-demand",
        epoch_s=protection.epoch_ms / 1000,
        epoch_max_s=max(protection.epoch_max_ms, protection.epoch_ms) / 1000,
        gap_s=protection.epoch_gap_ms / 1000,
        max_pause_share=protection.max_pause_share,
        busy_pause_share=protection.busy_pause_share,
    )


class EpochTimer:
    """Of one session's epochs."""

    def __init__(self, pace: Pace, taps: Sequence[str], pid: int, gates_fd: int | None = None) -> None:
        """`gates_fd`: an eventfd that the gates ring instead, when a frame must wait. GateError when a tap cannot be
        listened to."""
        self._on_demand = pace.on_demand
        self._bell = Bell(taps if pace.on_demand else (), gates_fd if pace.on_demand else None)
        self._vcpus = Vcpus(pid)
        self._cadence = Cadence(pace, time.monotonic())
        self._output_at: float | None = None
        self._stopped_at = time.monotonic()
        self._busy = True
        self._looked_at, self._ran = time.monotonic(), self._vcpus.ran()
        self._ran_at_cut = self._ran

    def wait(
        self, committed: Callable[[], bool], pressed: Callable[[], bool], called: Callable[[], bool]
    ) -> Why | None:
        """Until an epoch is due: why. None as soon as `called` is true, at a `wake`."""
        while not called():
            now = time.monotonic()
            found = self._cadence.look(now, self._look(now, committed(), pressed()))
            if isinstance(found, Cut):
                return found.why
            self._bell.wait(min(found.seconds, PRESSED_LOOK_S))
        return None

    def wake(self) -> None:
        """An epoch was committed, or somebody calls."""
        self._bell.wake()

    def at_stop(self) -> None:
        """The VM stands still: what it said so far is of the epoch that is being cut."""
        self._stopped_at = time.monotonic()
        self._bell.reset()
        self._output_at = None

    def marked(self) -> None:
        """Every gate has made its mark, and the VM still stands: what the gates rang for is of this epoch."""
        self._bell.marked()

    def cut(self) -> None:
        """An epoch was cut, and the VM runs again."""
        self._cadence.cut(self._stopped_at, time.monotonic())
        if self._on_demand:
            self._ran_at_cut = self._vcpus.ran()

    def close(self) -> None:
        """Nobody waits any more."""
        self._bell.close()
        self._vcpus.close()

    def _look(self, now: float, committed: bool, pressed: bool) -> Seen:
        if not self._on_demand:
            return Seen(None, busy=False, worked_s=0.0, committed=committed, pressed=pressed)
        rung = self._bell.wait(0)
        ran = self._vcpus.ran()
        if rung and self._output_at is None:
            # What the processors did before says nothing of what they do now.
            self._output_at, self._busy = now, True
            self._looked_at, self._ran = now, ran
        elif now - self._looked_at >= LOOK_S:
            # On a host that is short of cores a guest that has work to do may not run: it is not idle.
            self._busy = most_s(self._ran, ran) > BUSY_SHARE * (now - self._looked_at) or self._vcpus.wanted()
            self._looked_at, self._ran = now, ran
        output_s = None if self._output_at is None else now - self._output_at
        return Seen(output_s, self._busy, most_s(self._ran_at_cut, ran), committed, pressed)
