# SPDX-License-Identifier: Apache-2.0
"""A takeover gives the guest's clocks the time back that passed since the cut, in the device state that it loads.

The hosts' clocks need not agree. The primary says how long before it sent the COMMIT the VM was stopped, and this host
notes when the COMMIT came. What the network took is not known and stays lost, so the guest's clock is never ahead.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from remusdb.capture.clock_inject import KvmClock
from remusdb.capture.clock_search import Timers
from remusdb.core import clock_stream
from remusdb.core.clock_stream import Clocks
from remusdb.errors import VmError

log = logging.getLogger(__name__)

LOADING_MAX_NS = 20_000_000_000  # as long as a load may take (standby_vm.LOAD_S)


def now_ns() -> int:
    """This host's clock for it: steady, and it counts while the host sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class CaughtUp:
    """A device state to load, and what the clocks are in it, at which moment: None where there is nothing to go on
    with."""

    devices: bytes
    clocks: Clocks | None = None
    at_ns: int = 0
    ticks_per_ns: float = 0.0

    def before_start(self, timers: Timers) -> None:
        """It is loaded, and the VM is about to start: QEMU's clock is given what the loading took."""
        if self.clocks is None:
            return
        try:
            timers.forward(self.clocks, now_ns() - self.at_ns, self.ticks_per_ns)
        except (VmError, OSError) as exc:
            log.warning("QEMU's clock is late by what the loading took: %s", exc)

    def finish(self, pid: int) -> None:
        """The VM runs: kvmclock is given what loading and start took, where there is one."""
        if self.clocks is None or self.clocks.kvmclock is None:
            return
        try:
            KvmClock(pid).move(self._forward)
        except (VmError, OSError) as exc:
            log.warning("kvmclock is late by what the loading took: %s", exc)

    def _forward(self, found: int) -> int:
        assert self.clocks is not None and self.clocks.kvmclock is not None
        wanted = self.clocks.kvmclock + now_ns() - self.at_ns
        return wanted if 0 < wanted - found < LOADING_MAX_NS else found


@dataclass(frozen=True)
class CatchUp:
    """What is known of one device state. `earlier`: one of the same VM from before, which tells the TSC's rate."""

    earlier: bytes = b""
    stopped_at_ns: int | None = None  # `now_ns()` of the stop; None if the VM did not run until then

    def apply(self, devices: bytes) -> CaughtUp:
        """The device state as of now. One that is not understood is unchanged: the clock is late then, and the log
        says why."""
        if self.stopped_at_ns is None:
            log.info("the guest's clock goes on from where it stood: the VM did not run until the last epoch was cut")
            return CaughtUp(devices)
        now = now_ns()
        behind_ns = max(0, now - self.stopped_at_ns)
        try:
            rate = self._ticks_per_ns(devices)
            changed = clock_stream.forward(devices, behind_ns, rate)
            clocks = clock_stream.read(changed, clock_stream.places(changed))
        except VmError as exc:
            log.warning("the guest's clock stays %.3f s late: %s", behind_ns / 1e9, exc)
            return CaughtUp(devices)
        log.info("the guest's clock is set forward by %.3f s, the time since the last epoch", behind_ns / 1e9)
        return CaughtUp(changed, clocks, now, rate)

    def _ticks_per_ns(self, devices: bytes) -> float:
        if (told := clock_stream.tsc_per_ns(devices)) is not None:
            return told
        one, two = (clock_stream.read(state, clock_stream.places(state)) for state in (self.earlier, devices))
        return clock_stream.rate(one, two)
