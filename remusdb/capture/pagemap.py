# SPDX-License-Identifier: Apache-2.0
"""Which pages of a process were written since they were last protected: the kernel's PAGEMAP_SCAN.

For memory that a userfaultfd watches (write-protect, async). A page that is there and was never protected counts as
written. One that was never touched does on Linux 6.18 and does not on 6.12 (docs/facts.md, "Capture").
"""

from __future__ import annotations

import ctypes
import os

import numpy as np
from numpy.typing import NDArray

from remusdb import native
from remusdb.capture import kernel
from remusdb.capture.runs import MERGE_GAP_BYTES, SPAN_BYTES, Runs, as_runs, page_numbers, pieces
from remusdb.errors import VmError
from remusdb.vm.ramblocks import Block

VECTOR_RUNS = 1 << 16  # page_region entries a scan may return at once: 24 bytes each


class PageMap:
    """`/proc/PID/pagemap`. For one thread."""

    def __init__(self, pid: int) -> None:
        """OSError when it cannot be opened."""
        self._regions = np.zeros((VECTOR_RUNS, 3), dtype=np.uint64)
        self._seen = np.zeros((VECTOR_RUNS, 3), dtype=np.uint64)
        self._fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def written(self, start: int, end: int) -> Runs:
        """The written runs in [start, end)."""
        return self._walk(start, end, kernel.PM_SCAN_CHECK_WPASYNC, kernel.PAGE_IS_WRITTEN)

    def protect(self, start: int, end: int, *, whole: bool = False) -> Runs:
        """The same, and each page that is named is protected in the same step. Drops KVM's mappings of the range.

        `whole`: every page there is named and protected, also one that was never touched.
        """
        wanted = 0 if whole else kernel.PAGE_IS_WRITTEN
        return self._walk(start, end, kernel.PM_SCAN_CHECK_WPASYNC | kernel.PM_SCAN_WP_MATCHING, wanted)

    def collect(self, block: Block, hot: NDArray[np.uint8], hot_count: int) -> Runs:
        """What was written in this block, protected, but for what is `hot` (a byte a page), which is named in any case.

        Of what is clean little more than MERGE_GAP_BYTES at a time loses its mappings in KVM. In C where that was
        built: sooner by a millisecond and more, and the VM stands still meanwhile.
        """
        parts: list[Runs] = []
        at, end, missing = block.address, block.address + block.size, hot_count
        while native.kernels is not None and at < end:
            count, upto, seen = native.kernels.collect(
                self._fd, at, end, block.address, MERGE_GAP_BYTES, SPAN_BYTES, self._seen, self._regions, hot
            )
            parts.append(self._regions[:count, :2].copy())
            missing -= seen
            if upto == at:
                break  # what the kernel says there is odd: see below what it is
            at = upto
        if at < end:
            parts.append(self._collect(at, end, block, hot))
        runs = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if missing:
            named = np.union1d(page_numbers(runs, block), np.flatnonzero(hot))
            runs = as_runs(named, block.address)
        return runs

    def _collect(self, start: int, end: int, block: Block, hot: NDArray[np.uint8]) -> Runs:
        """The same of a part of the block, but for what is hot."""
        written = self.written(start, end)
        numbers = page_numbers(written, block)
        cold = as_runs(numbers[hot[numbers] == 0], block.address)
        found = [self.protect(*piece) for piece in pieces(cold)]
        return np.concatenate(found) if found else cold

    def _walk(self, start: int, end: int, flags: int, wanted: int) -> Runs:
        """A walk ends early when the vector is full. Where it has found more than 512 runs, `walk_end` is the place at
        which the kernel took its last breath, though it went on to the end: docs/facts.md, "Capture". So a walk goes on
        behind what it named.

        OSError when the kernel refuses; VmError when it gets nowhere, as in huge pages of 1 GiB, which this ioctl does
        not protect (fs/proc/task_mmu.c, "Partial HugeTLB page").
        """
        parts = []
        while start < end:
            arg = kernel.ScanArg(
                ctypes.sizeof(kernel.ScanArg), flags, start, end, 0, self._regions.ctypes.data, len(self._regions),
                0, 0, wanted, 0, kernel.PAGE_IS_WRITTEN,
            )  # fmt: skip
            count = kernel.check(kernel.libc.ioctl(self._fd, kernel.PAGEMAP_SCAN, ctypes.byref(arg)), "PAGEMAP_SCAN")
            walked = max(arg.walk_end, int(self._regions[count - 1, 1]) if count else 0)
            if walked <= start:
                hint = "huge pages of 1 GiB are not: give the VM those of 2 MiB, or ordinary ones"
                raise VmError(f"the memory at {start:#x} cannot be tracked: PAGEMAP_SCAN does not advance", hint=hint)
            parts.append(self._regions[:count, :2].copy())
            start = walked
        return np.concatenate(parts) if len(parts) != 1 else parts[0]
