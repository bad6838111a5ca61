# SPDX-License-Identifier: Apache-2.0
"""Some fields of another process's memory, for the stopped part of a cut: one system call to read, one to write."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from remusdb.capture.kernel import check, libc


class Fields:
    """Some i64 fields of a process, read and written with one system call each, from buffers made beforehand."""

    def __init__(self, pid: int, addresses: Sequence[int]) -> None:
        self._pid = pid
        count = len(addresses)
        self._buffer = (ctypes.c_int64 * count)()
        self._local = (ctypes.c_uint64 * 2)(ctypes.addressof(self._buffer), 8 * count)
        self._remote = (ctypes.c_uint64 * (2 * count))(*[word for at in addresses for word in (at, 8)])
        self._count = count

    def read(self) -> list[int]:
        """Their values. OSError when they cannot be read."""
        self._move(libc.process_vm_readv)
        return list(self._buffer)

    def write(self, values: Sequence[int]) -> None:
        """Make them these. OSError when that does not go."""
        self._buffer[:] = list(values)
        self._move(libc.process_vm_writev)

    def _move(self, call: ctypes._NamedFuncPointer) -> None:
        done = call(self._pid, ctypes.addressof(self._local), 1, ctypes.addressof(self._remote), self._count, 0)
        if check(done, "process_vm") != 8 * self._count:
            raise OSError(f"{done} of {8 * self._count} bytes of QEMU's clocks were moved")
