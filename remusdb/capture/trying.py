# SPDX-License-Identifier: Apache-2.0
"""Whether this kernel tells which pages were written: tried on pages of our own."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct

from remusdb.capture import kernel
from remusdb.capture.pagemap import PageMap
from remusdb.errors import VmError

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
        pages = PageMap(os.getpid())
        try:
            pages.protect(start, start + TRY_BYTES)
            memory[2 * mmap.PAGESIZE] = 1
            found = pages.written(start, start + TRY_BYTES)[:, 0].tolist()
        finally:
            pages.close()
        expected = start + 2 * mmap.PAGESIZE
        return "" if found == [expected] else f"a scan found {len(found)} written runs, expected one"
    except OSError as exc:
        return f"userfaultfd write-protect and PAGEMAP_SCAN: {exc.strerror}"
    except VmError as exc:
        return str(exc)
    finally:
        os.close(uffd)
        del anchor
        memory.close()
