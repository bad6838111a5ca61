# SPDX-License-Identifier: Apache-2.0
"""Which pages of a running QEMU were written: userfaultfd write-protect (async) and PAGEMAP_SCAN.

Owns the userfaultfd on QEMU's RAM blocks. Invariant: a page written after a `collect` is in the next one's
answer; a page may be named twice, never not at all, also while the VM runs.

A scan of the whole RAM does not protect anything: the kernel would invalidate the whole range at once and KVM
would drop every mapping. It finds the written runs; then each run (near ones merged) is scanned again with
protection, which reports and protects page by page in one step.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

import numpy as np
from numpy.typing import NDArray

from remusdb.errors import VmError
from remusdb.vm import kernel
from remusdb.vm.inject import userfaultfd_of
from remusdb.vm.ramblocks import PAGE_BYTES, Block

VECTOR_RUNS = 1 << 16  # page_region entries a scan may return at once: 24 bytes each
MERGE_GAP_BYTES = 16 * PAGE_BYTES  # one ioctl over a gap of clean pages is cheaper than two ioctls
PROTECT_STEP_BYTES = 64 << 20  # the first protection goes in steps, so that the guest is never held long

PageNumbers = NDArray[np.int64]


class Tracker:
    """The written pages of `blocks` of process `pid`."""

    def __init__(self, pid: int, blocks: list[Block]) -> None:
        self.blocks = blocks
        self._regions = np.zeros((VECTOR_RUNS, 3), dtype=np.uint64)
        self._pagemap = -1
        self._uffd = userfaultfd_of(pid)
        try:
            self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            fcntl.ioctl(self._uffd, kernel.UFFDIO_API, bytearray(struct.pack("<QQQ", 0xAA, kernel.UFFD_FEATURES, 0)))
            for block in blocks:
                self._register(block)
        except OSError as exc:
            self.close()
            hint = "Linux 6.7 or newer is needed, and RAM that is anonymous, memfd or hugetlbfs"
            raise VmError(f"writes to QEMU's memory cannot be tracked: {exc}", hint=hint) from exc

    def protect_all(self) -> None:
        """Forget what was written until now: from here on `collect` tells what is written."""
        for block in self.blocks:
            for start in range(0, block.size, PROTECT_STEP_BYTES):
                end = min(start + PROTECT_STEP_BYTES, block.size)
                self._scan(block.address + start, block.address + end, protect=True)

    def collect(self) -> list[tuple[int, PageNumbers]]:
        """(block index, ascending page numbers) of what was written since the last call; protects it again."""
        found = []
        for index, block in enumerate(self.blocks):
            written = self._scan(block.address, block.address + block.size, protect=False)
            if len(written):
                parts = [self._scan(low, high, protect=True) for low, high in merge_runs(written)]
                # While the VM runs, a walk that is taken up again may name a page that it named before.
                found.append((index, np.unique(_page_numbers(np.concatenate(parts), block.address))))
        return found

    def close(self) -> None:
        """Stop tracking; QEMU's memory is as it was. May be called twice."""
        for fd in (self._uffd, self._pagemap):
            if fd >= 0:
                os.close(fd)
        self._uffd = self._pagemap = -1

    def _register(self, block: Block) -> None:
        argument = struct.pack("<QQQQ", block.address, block.size, kernel.UFFDIO_REGISTER_MODE_WP, 0)
        fcntl.ioctl(self._uffd, kernel.UFFDIO_REGISTER, bytearray(argument))

    def _scan(self, start: int, end: int, *, protect: bool) -> NDArray[np.uint64]:
        """The written runs in [start, end) as rows (first address, end address). A full vector ends a walk early."""
        flags = kernel.PM_SCAN_CHECK_WPASYNC | (kernel.PM_SCAN_WP_MATCHING if protect else 0)
        parts = []
        while start < end:
            arg = kernel.ScanArg(
                ctypes.sizeof(kernel.ScanArg), flags, start, end, 0, self._regions.ctypes.data, VECTOR_RUNS,
                0, 0, kernel.PAGE_IS_WRITTEN, 0, kernel.PAGE_IS_WRITTEN,
            )  # fmt: skip
            count = kernel.libc.ioctl(self._pagemap, kernel.PAGEMAP_SCAN, ctypes.byref(arg))
            kernel.check(count, "PAGEMAP_SCAN")
            parts.append(self._regions[:count, :2].copy())
            start = arg.walk_end
        return np.concatenate(parts) if len(parts) != 1 else parts[0]


def merge_runs(runs: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Ascending runs as few [start, end) address ranges, those nearer than MERGE_GAP_BYTES made one."""
    apart = np.flatnonzero(runs[1:, 0] - runs[:-1, 1] > MERGE_GAP_BYTES) + 1
    first = np.concatenate(([0], apart))
    last = np.concatenate((apart, [len(runs)])) - 1
    return list(zip(runs[first, 0].tolist(), runs[last, 1].tolist(), strict=True))


def _page_numbers(runs: NDArray[np.uint64], base: int) -> PageNumbers:
    start = ((runs[:, 0] - np.uint64(base)) >> np.uint64(12)).astype(np.int64)
    count = ((runs[:, 1] - runs[:, 0]) >> np.uint64(12)).astype(np.int64)
    if not len(start):
        return start
    before = np.cumsum(count) - count
    return np.repeat(start - before, count) + np.arange(int(count.sum()), dtype=np.int64)
