# SPDX-License-Identifier: Apache-2.0
"""Whether this kernel tells which pages were written: tried on pages of our own."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct

from remusdb.vm import kernel

TRY_BYTES = 4 * mmap.PAGESIZE


def try_tracking() -> str:
    """Track writes to a few pages of our own, as the capture does with QEMU's: empty if it works, else why not."""
    uffd = kernel.libc.syscall(kernel.SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | kernel.UFFD_USER_MODE_ONLY)
    if uffd < 0:
        return f"userfaultfd: {os.strerror(ctypes.get_errno())}"
    memory = mmap.mmap(-1, TRY_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    anchor = ctypes.c_char.from_buffer(memory)
    start = ctypes.addressof(anchor)
    try:
        fcntl.ioctl(uffd, kernel.UFFDIO_API, bytearray(struct.pack("<QQQ", 0xAA, kernel.UFFD_FEATURES, 0)))
        argument = struct.pack("<QQQQ", start, TRY_BYTES, kernel.UFFDIO_REGISTER_MODE_WP, 0)
        fcntl.ioctl(uffd, kernel.UFFDIO_REGISTER, bytearray(argument))
        _written(start, protect=True)
        memory[2 * mmap.PAGESIZE] = 1
        found = _written(start, protect=False)
        expected = start + 2 * mmap.PAGESIZE
        return "" if found == [expected] else f"a scan found {len(found)} written runs, expected one"
    except OSError as exc:
        return f"userfaultfd write-protect and PAGEMAP_SCAN: {exc.strerror}"
    finally:
        os.close(uffd)
        del anchor
        memory.close()


def _written(start: int, *, protect: bool) -> list[int]:
    """The first addresses of the written runs."""
    flags = kernel.PM_SCAN_CHECK_WPASYNC | (kernel.PM_SCAN_WP_MATCHING if protect else 0)
    vector = (ctypes.c_uint64 * (3 * 16))()
    arg = kernel.ScanArg(
        ctypes.sizeof(kernel.ScanArg), flags, start, start + TRY_BYTES, 0, ctypes.addressof(vector), 16,
        0, 0, kernel.PAGE_IS_WRITTEN, 0, kernel.PAGE_IS_WRITTEN,
    )  # fmt: skip
    with open("/proc/self/pagemap", "rb") as pagemap:
        count = kernel.check(
            kernel.libc.ioctl(pagemap.fileno(), kernel.PAGEMAP_SCAN, ctypes.byref(arg)), "PAGEMAP_SCAN"
        )
    return [vector[3 * index] for index in range(count)]
