# SPDX-License-Identifier: Apache-2.0
"""Another process's memory, in pages: scattered reads and writes with process_vm_readv and process_vm_writev."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from remusdb.capture.kernel import check, libc
from remusdb.capture.runs import Runs, runs_of
from remusdb.errors import VmError
from remusdb.vm.ramblocks import PAGE_BYTES

IOV_MAX = 1024  # linux/uio.h UIO_MAXIOV
CALL_BYTES = 1 << 30  # a call moves at most 2 GiB less a page (MAX_RW_COUNT)
SHIFT = np.int64(12)


class ProcessMemory:
    """The memory of process `pid`. Everything is in whole pages; a short transfer raises VmError."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def read(self, address: int, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pages `numbers` (ascending) of the mapping at `address`, shape (n, 4096)."""
        content = np.empty((len(numbers), PAGE_BYTES), dtype=np.uint8)
        self._transfer(libc.process_vm_readv, address, numbers, content)
        return content

    def read_runs(self, runs: Runs, content: NDArray[np.uint8]) -> None:
        """Fill `content`, as many bytes as `runs` have in all, with what is there."""
        remote = np.ascontiguousarray(runs).copy()
        remote[:, 1] -= remote[:, 0]
        self._move(libc.process_vm_readv, remote, content)

    def write(self, address: int, numbers: NDArray[np.int64], content: NDArray[np.uint8]) -> None:
        """Put `content`, shape (n, 4096), into the pages `numbers` (ascending) of the mapping at `address`."""
        self._transfer(libc.process_vm_writev, address, numbers, np.ascontiguousarray(content))

    def _transfer(
        self, call: ctypes._NamedFuncPointer, address: int, numbers: NDArray[np.int64], content: NDArray[np.uint8]
    ) -> None:
        if len(numbers):
            first, count = runs_of(numbers)
            remote = np.empty((len(first), 2), dtype=np.uint64)
            remote[:, 0] = (first << SHIFT) + address
            remote[:, 1] = count << SHIFT
            self._move(call, remote, content)

    def _move(self, call: ctypes._NamedFuncPointer, remote: NDArray[np.uint64], content: NDArray[np.uint8]) -> None:
        """`remote`: rows (address, bytes); `content` is contiguous and has as many bytes."""
        ends = np.cumsum(remote[:, 1], dtype=np.int64)
        if int(ends[-1]) != content.nbytes:
            raise ValueError(f"{int(ends[-1])} bytes there, {content.nbytes} here")
        low = moved = 0
        while low < len(remote):
            fits = int(np.searchsorted(ends, moved + CALL_BYTES, side="right"))
            high = max(low + 1, min(low + IOV_MAX, fits))
            part, size = remote[low:high], int(ends[high - 1]) - moved
            local = np.array([content.ctypes.data + moved, size], dtype=np.uint64)
            try:
                done = check(call(self.pid, local.ctypes.data, 1, part.ctypes.data, len(part), 0), "process_vm")
            except OSError as exc:
                raise VmError(f"memory of QEMU (pid {self.pid}) cannot be reached: {exc}") from exc
            if done != size:
                raise VmError(f"memory of QEMU (pid {self.pid}): {done} of {size} bytes moved")
            low, moved = high, moved + size
