# SPDX-License-Identifier: Apache-2.0
"""One cut: device state and written memory of a live VM at one instant.

    monitor call ─▶ QEMU stops the VM, drains and flushes its disks, offers device state
                    │ first byte readable: the VM is stopped
                    ├─ at_stop()     gates begin to mark, disk positions are read
                    ├─ collect, read written pages, copied out of QEMU
                    ├─ before_start() gates have marked
                    └─ drain the state ─▶ QEMU starts the VM

Only what must be done while the VM is stopped is done here; the read end of the FIFO is closed in any case, so
that QEMU goes on whatever fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remusdb.errors import VmError
from remusdb.vm.domain import Domain
from remusdb.vm.fifo import StateFifo, drain, wait_readable
from remusdb.vm.memory import ProcessMemory
from remusdb.vm.ramblocks import Block
from remusdb.vm.tracker import Tracker


@dataclass(frozen=True)
class DirtyBlock:
    """Written pages of one RAM block: ascending numbers, content of shape (n, 4096)."""

    block: int
    numbers: NDArray[np.int64]
    content: NDArray[np.uint8]


@dataclass(frozen=True)
class Cut:
    """One instant of a VM. How long it stood still is told by QEMU itself: see `vm/pauses.py`."""

    devices: bytes
    memory: list[DirtyBlock]

    @property
    def pages(self) -> int:
        """How many pages were written since the last cut."""
        return sum(len(part.numbers) for part in self.memory)


class Capture:
    """Cuts of one domain."""

    def __init__(self, domain: Domain, tracker: Tracker, fifo: StateFifo, timeout_s: float) -> None:
        self._domain = domain
        self._tracker = tracker
        self._fifo = fifo
        self._timeout_s = timeout_s
        self._memory = ProcessMemory(domain.pid)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @property
    def blocks(self) -> list[Block]:
        """The RAM blocks that cuts speak of, by index."""
        return self._tracker.blocks

    def live_pages(self) -> list[DirtyBlock]:
        """Written pages read while the VM runs: may be torn, the next call or cut names those again."""
        return self._read(self._tracker.collect())

    def cut(self, at_stop: Callable[[], None], before_start: Callable[[], None]) -> Cut:
        """Stop, copy, start. VmError when QEMU or libvirt does not do its part; the VM runs on then."""
        if not self._fifo.guarded():
            raise VmError("the guard process of the state FIFO is gone")
        fd = self._fifo.open()
        call = self._save_devices()
        try:
            while not wait_readable(fd, self._wake, self._timeout_s):
                self._clear_wake()
                if call.done():
                    self._domain.deadline.finish(call, "xen-save-devices-state")
                    raise VmError("QEMU saved its device state without writing any")
            at_stop()
            memory = self._read(self._tracker.collect())
            before_start()
            devices = drain(fd, self._timeout_s)
        except BaseException:
            if not call.done():
                self._fifo.abandon()
            raise
        finally:
            os.close(fd)
        self._domain.deadline.finish(call, "xen-save-devices-state")
        return Cut(devices, memory)

    def close(self) -> None:
        """Release the descriptor; tracker and FIFO belong to the caller."""
        os.close(self._wake)

    def _save_devices(self) -> Future[Any]:
        """Begin the one monitor call. `live=false`: with true, a save of a paused VM would inactivate its disks."""
        call = self._domain.deadline.start(
            self._domain.qmp_blocking, "xen-save-devices-state", filename=str(self._fifo.path), live=False
        )
        call.add_done_callback(lambda _done: os.eventfd_write(self._wake, 1))
        return call

    def _clear_wake(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return

    def _read(self, written: list[tuple[int, NDArray[np.int64]]]) -> list[DirtyBlock]:
        blocks = self._tracker.blocks
        return [DirtyBlock(i, pages, self._memory.read(blocks[i].address, pages)) for i, pages in written]
