# SPDX-License-Identifier: Apache-2.0
"""What is taken from a live VM at its stops: the cut, and in the initial sync the protection of what is copied later.

    QEMU stopped the VM and drained its disks (stops.py)
      ├─ cut:     at_stop()       gates begin to mark, disk positions are read
      │           collect, read written pages, copied out of QEMU
      │           before_start()  gates have marked
      └─ protect: written pages, for PROTECT_S; they are copied once the VM runs

Only what must be done while the VM is stopped is done here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from remusdb.capture.clock import GuestClock
from remusdb.capture.fifo import StateFifo
from remusdb.capture.memory import ProcessMemory
from remusdb.capture.stops import Stops, Waiting
from remusdb.capture.tracker import Pages, Span, Tracker
from remusdb.vm.domain import Domain
from remusdb.vm.libvirt_link import LibvirtLink
from remusdb.vm.ramblocks import Block

PROTECT_S = 0.005  # of each stop of the initial sync: what the rest of a stop takes as well


@dataclass(frozen=True)
class DirtyBlock:
    """Written pages of one RAM block: ascending numbers, content of shape (n, 4096)."""

    block: int
    numbers: NDArray[np.int64]
    content: NDArray[np.uint8]


@dataclass(frozen=True)
class Cut:
    """One instant of a VM. How long it stood still is told by QEMU itself: see `capture/pauses.py`."""

    devices: bytes
    memory: list[DirtyBlock]
    stopped_at_ns: int | None = None  # time.monotonic_ns() of its stop; None if the VM did not run until then

    @property
    def pages(self) -> int:
        """How many pages were written since the last cut."""
        return sum(len(part.numbers) for part in self.memory)


class Capture:
    """What is taken from one domain. `cut` and `protect` are for one thread at a time, the rest for any."""

    def __init__(
        self,
        domain: Domain,
        tracker: Tracker,
        fifo: StateFifo,
        link: LibvirtLink,
        clock: GuestClock,
        patience_s: float,
    ) -> None:
        """`patience_s`: how long one stop waits for a libvirt that is away."""
        self._tracker = tracker
        self._memory = ProcessMemory(domain.pid)
        self._stops = Stops(domain, fifo, link, clock, patience_s)

    @property
    def blocks(self) -> list[Block]:
        """The RAM blocks that cuts speak of, by index."""
        return self._tracker.blocks

    def everything(self) -> deque[Span]:
        """All of memory, for the first round."""
        return self._tracker.everything()

    def written(self) -> deque[Span]:
        """Where memory was written since it was protected. The VM runs."""
        return self._tracker.written()

    def protect(self, spans: deque[Span], waiting: Waiting) -> Pages:
        """Stop, protect the first of `spans` (they are taken from it), start: the pages to be copied from here on.

        What they hold when they are read later is what they held at the stop, or the next stop names them again.
        """
        found = self._stops.at_stop(lambda: self._tracker.protect(spans, PROTECT_S), waiting).done
        return self._tracker.pages(found)

    def cut(self, at_stop: Callable[[], None], before_start: Callable[[], None], waiting: Waiting) -> Cut:
        """Stop, copy, start. VmError when QEMU or libvirt does not do its part; the VM runs on then."""

        def copy() -> list[DirtyBlock]:
            at_stop()
            memory = self.read(self._tracker.collect())
            before_start()
            return memory

        stop = self._stops.at_stop(copy, waiting)
        return Cut(stop.devices, stop.done, stop.at_ns)

    def device_state(self) -> bytes:
        """What QEMU saves at one instant, nothing of the memory: nothing is taken from the next cut."""
        return self._stops.at_stop(lambda: None, lambda _seconds: None).devices

    def read(self, written: Pages) -> list[DirtyBlock]:
        """What these pages hold now."""
        blocks = self._tracker.blocks
        return [DirtyBlock(i, pages, self._memory.read(blocks[i].address, pages)) for i, pages in written]

    def close(self) -> None:
        """Have a stop that waits give up; tracker and FIFO belong to the caller."""
        self._stops.close()
