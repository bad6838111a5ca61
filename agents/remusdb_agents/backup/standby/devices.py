# SPDX-License-Identifier: Apache-2.0
"""Block devices of this host that replicate a VM's disks where agent.toml names them.

A device is the operator's: it is written, and never made, cut, removed or made larger. What is in use is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from remusdb.errors import DiskError

# QEMU tells other QEMUs by locks on these bytes what it does with an image (block/file-posix.c, RAW_LOCK_*_BASE).
QEMU_LOCKS = (100, 164)
F_OFD_GETLK = 36  # linux/fcntl.h
FLOCK = struct.Struct("hhqqi4x")
HINT = "name another block device in agent.toml, or remove the line: the disk is then a file in the images folder"


@dataclass(frozen=True)
class Device:
    """A block device that stands for a disk of `size` bytes; it may be larger itself."""

    path: Path
    size: int
    device_bytes: int


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """OSError as DiskError, with what to do."""
    try:
        yield
    except OSError as exc:
        busy = exc.errno in (errno.EBUSY, errno.ETXTBSY)
        why = "it is mounted, or part of something else (LVM, RAID, swap)" if busy else str(exc.strerror)
        raise DiskError(f"block device {path}: {why}", hint=HINT) from exc


def open_device(path: Path, size: int) -> tuple[int, Device]:
    """Open it for ourselves alone, to stand for a disk of `size` bytes. DiskError when it cannot."""
    with explained(path):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_EXCL)
        try:
            if not stat.S_ISBLK(os.fstat(fd).st_mode):
                raise DiskError(f"{path} is no block device", hint=HINT)
            has = os.lseek(fd, 0, os.SEEK_END)
            if has < size:
                raise DiskError(f"block device {path} has {has} bytes, the VM's disk {size}", hint=HINT)
            if _used_by_qemu(fd):
                raise DiskError(f"block device {path} is in use by a QEMU of this host", hint=HINT)
        except BaseException:
            os.close(fd)
            raise
    return fd, Device(path, size, has)


def _used_by_qemu(fd: int) -> bool:
    first, end = QEMU_LOCKS
    question = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, first, end - first, 0)
    return bool(FLOCK.unpack(fcntl.fcntl(fd, F_OFD_GETLK, question))[0] != fcntl.F_UNLCK)
