# SPDX-License-Identifier: Apache-2.0
"""What is taken from a live VM at its stops: the cut, and in the initial sync the protection of what is copied later.

    QEMU stopped the VM and drained its disks (stops.py)
      ├─ cut:     at_stop()       gates begin to mark, disk positions are read   "gates"
      │           collect         written pages are found, and protected again   "find"
      │           read            and copied out of QEMU                         "read"
      │           before_start()  gates have marked                              "marked"
      │           (stops.py)      clock and device state                         "state"
      └─ protect: written pages, for PROTECT_S; they are copied once the VM runs

Only what must be done while the VM is stopped is done here. How long each part took is noted: `Cut.stages_ms`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from remusdb.capture.buffers import PageBuffers
from remusdb.capture.clock import GuestClock
from remusdb.capture.fifo import StateFifo
from remusdb.capture.memory import ProcessMemory
from remusdb.capture.runs import Runs, page_count
from remusdb.capture.stops import Stops, Waiting
from remusdb.capture.tracker import Pages, Span, Tracker
from remusdb.vm.domain import Domain
from remusdb.vm.libvirt_link import LibvirtLink
from remusdb.vm.ramblocks import Block

STAGES = ("stop", "gates", "find", "read", "marked", "state")
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
    stages_ms: dict[str, float] = field(default_factory=dict)  # "stop": from the call to it; the others: see above
    room: NDArray[np.uint8] | None = None  # where the content of `memory` is: see `Capture.give_back`

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
        self._buffers = PageBuffers()
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

        times: list[int] = []

        def copy() -> tuple[list[tuple[int, Runs]], NDArray[np.uint8]]:
            times.append(time.monotonic_ns())
            at_stop()
            times.append(time.monotonic_ns())
            written = self._tracker.collect()
            times.append(time.monotonic_ns())
            content = self._read_runs(written)
            times.append(time.monotonic_ns())
            before_start()
            times.append(time.monotonic_ns())
            return written, content

        self._tracker.before_collect()
        stop = self._stops.at_stop(copy, waiting)
        every = [stop.asked_ns, *times, stop.ended_ns]
        stages = {name: (end - began) / 1e6 for name, began, end in zip(STAGES, every[:-1], every[1:], strict=True)}
        written, content = stop.done
        memory, had = [], 0
        pages = self._tracker.pages(written)
        self._tracker.collected(pages)
        for index, numbers in pages:
            memory.append(DirtyBlock(index, numbers, content[had : had + len(numbers)]))
            had += len(numbers)
        return Cut(stop.devices, memory, stop.at_ns, stages, content)

    def give_back(self, cut: Cut) -> None:
        """Nobody needs the content of this cut any more: the next one is read to the same place."""
        if cut.room is not None:
            self._buffers.give_back(cut.room)

    def _read_runs(self, written: list[tuple[int, Runs]]) -> NDArray[np.uint8]:
        """The content of all these runs, one after the other."""
        counts = [page_count(runs) for _, runs in written]
        content, had = self._buffers.take(sum(counts)), 0
        for (_, runs), count in zip(written, counts, strict=True):
            self._memory.read_runs(runs, content[had : had + count])
            had += count
        return content

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
