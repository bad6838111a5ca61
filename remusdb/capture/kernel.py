# SPDX-License-Identifier: Apache-2.0
"""The few system calls that Python does not offer: numbers, structures and thin typed calls.

Numbers and layouts: linux/userfaultfd.h, linux/fs.h (PAGEMAP_SCAN, Linux 6.7), sys/ptrace.h, x86-64 syscall table.
"""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
for _call in (libc.process_vm_readv, libc.process_vm_writev):
    _call.restype = ctypes.c_ssize_t
    _call.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
    ]  # fmt: skip

SYS_USERFAULTFD = 323
SYS_CLOSE = 3
SYS_IOCTL = 16
SYS_PIDFD_GETFD = 438
UFFD_USER_MODE_ONLY = 1
UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
UFFDIO_REGISTER_MODE_MISSING = 1
UFFDIO_REGISTER_MODE_WP = 2
UFFDIO_COPY = 0xC028AA03
UFFDIO_WAKE = 0x8010AA02
UFFD_EVENT_PAGEFAULT = 0x12
# WP | WP_HUGETLBFS_SHMEM | WP_UNPOPULATED | WP_ASYNC: the kernel itself lifts the protection on a write and notes it.
UFFD_FEATURES = 1 | 1 << 12 | 1 << 13 | 1 << 15
PAGEMAP_SCAN = 0xC0606610
PM_SCAN_WP_MATCHING = 1
PM_SCAN_CHECK_WPASYNC = 2
PAGE_IS_WRITTEN = 2
F_SETPIPE_SZ = 1031


class ScanArg(ctypes.Structure):
    """struct pm_scan_arg."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "size flags start end walk_end vec vec_len max_pages category_inverted category_mask "
            "category_anyof_mask return_mask"
        ).split()
    ]


def check(result: int, what: str) -> int:
    """`result`, or the OSError that errno tells."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def pidfd_getfd(pid: int, fd: int) -> int:
    """A duplicate of descriptor `fd` of process `pid`."""
    pidfd = os.pidfd_open(pid)
    try:
        return check(libc.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0), "pidfd_getfd")
    finally:
        os.close(pidfd)
