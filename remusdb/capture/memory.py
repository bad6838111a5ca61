# SPDX-License-Identifier: Apache-2.0
"""Another process's memory, in pages: scattered reads and writes with process_vm_readv and process_vm_writev."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from remusdb.capture.kernel import check, libc
from remusdb.errors import VmError
from remusdb.vm.ramblocks import PAGE_BYTES

IOV_MAX = 1024  # linux/uio.h UIO_MAXIOV
SHIFT = np.int64(12)


def runs_of(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ascending page numbers as (first page, page count) of their contiguous runs."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    starts = np.concatenate(([0], breaks))
    ends = np.concatenate((breaks, [len(numbers)]))
    return numbers[starts], ends - starts


class ProcessMemory:
    """The memory of process `pid`. Everything is in whole pages; a short transfer raises VmError."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def read(self, address: int, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The pages `numbers` (ascending) of the mapping at `address`, shape (n, 4096)."""
        content = np.empty((len(numbers), PAGE_BYTES), dtype=np.uint8)
        self._transfer(libc.process_vm_readv, address, numbers, content)
        return content

    def write(self, address: int, numbers: NDArray[np.int64], content: NDArray[np.uint8]) -> None:
        """Put `content`, shape (n, 4096), into the pages `numbers` (ascending) of the mapping at `address`."""
        self._transfer(libc.process_vm_writev, address, numbers, np.ascontiguousarray(content))

    def _transfer(
        self, call: ctypes._NamedFuncPointer, address: int, numbers: NDArray[np.int64], content: NDArray[np.uint8]
    ) -> None:
        if not len(numbers):
            return
        first, count = runs_of(numbers)
        remote = np.empty((len(first), 2), dtype=np.uint64)
        remote[:, 0] = (first << SHIFT) + address
        remote[:, 1] = count << SHIFT
        at = content.ctypes.data
        for low in range(0, len(remote), IOV_MAX):
            part = remote[low : low + IOV_MAX]
            size = int(part[:, 1].sum())
            local = np.array([at, size], dtype=np.uint64)
            try:
                done = check(call(self.pid, local.ctypes.data, 1, part.ctypes.data, len(part), 0), "process_vm")
            except OSError as exc:
                raise VmError(f"memory of QEMU (pid {self.pid}) cannot be reached: {exc}") from exc
            if done != size:
                raise VmError(f"memory of QEMU (pid {self.pid}): {done} of {size} bytes moved")
            at += size
