# SPDX-License-Identifier: Apache-2.0
"""The replica's disks: sparse raw files that committed epochs' writes are applied to.

Owns one file a disk in `folder`. Invariant: after `apply` of whole epochs in order, each file reads like the
primary's disk at the last epoch's cut. Records are applied in order and never beyond a disk's end; an error
leaves the images between two epochs, so whoever gets it must not promote from them.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from remusdb.core.writes import Kind, Record, iter_records
from remusdb.errors import DiskError

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_ZEROS = bytes(1 << 20)
_FULL = (errno.ENOSPC, errno.EDQUOT)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class ReplicaImages:
    """The raw images of one replica VM. For one thread."""

    def __init__(self, folder: Path, sizes: list[int], names: list[str]) -> None:
        """Create folder/NAME.raw, sparse, of exactly `sizes` bytes; what was there before is thrown away."""
        if len(sizes) != len(names) or len(set(names)) != len(names):
            raise DiskError(f"{len(sizes)} disk sizes for the names {names}")
        self.folder = folder
        self.sizes = list(sizes)
        self.paths = [folder / f"{_plain(name)}.raw" for name in names]
        self._files: list[int] = []
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            for path, size in zip(self.paths, sizes, strict=True):
                self._files.append(_create(path, size))
        except DiskError:
            self.close()
            raise

    def apply(self, raw_records: bytes) -> None:
        """Apply the records of one epoch (or a part of the initial copy), in order."""
        if not self._files:
            raise DiskError("replica images are closed")
        for record in iter_records(raw_records):
            self._check(record)
            with _explained(self.paths[record.disk]):
                if record.kind is Kind.WRITE:
                    _write(self._files[record.disk], record.data, record.offset)
                else:
                    _clear(self._files[record.disk], record.offset, record.length)

    def _check(self, record: Record) -> None:
        if record.disk >= len(self.sizes):
            raise DiskError(f"write log names disk {record.disk}, there are {len(self.sizes)}")
        end = record.offset + record.length
        if end > self.sizes[record.disk]:
            raise DiskError(f"write log goes to byte {end} of {self.paths[record.disk].name}, beyond its end")

    def free_check(self, needed: int) -> None:
        """Raise unless the folder's file system has `needed` bytes free."""
        with _explained(self.folder):
            stats = os.statvfs(self.folder)
        free = stats.f_bavail * stats.f_frsize
        if free < needed:
            raise DiskError(
                f"not enough room for the replica disks in {self.folder}: {needed} bytes needed, {free} free",
                hint="free space there, or set another images folder in agent.toml",
            )

    def close(self) -> None:
        """Close the files; the images stay. Idempotent."""
        while self._files:
            os.close(self._files.pop())

    def remove(self) -> None:
        """Close and delete the images, and the folder if nothing else is in it. Idempotent."""
        self.close()
        with _explained(self.folder):
            for path in self.paths:
                path.unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it, or it is a mount point
            self.folder.rmdir()


def _plain(name: str) -> str:
    """The name came over the wire: it must stay inside the folder."""
    if not name or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
        raise DiskError(f"not a disk name: {name!r}")
    return name


def _create(path: Path, size: int) -> int:
    if size < 0:
        raise DiskError(f"disk {path.name} cannot have {size} bytes")
    with _explained(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(fd, size)
        except OSError:
            os.close(fd)
            raise
    return fd


def _write(fd: int, data: memoryview | bytes, offset: int) -> None:
    """A short write is usually followed by the error that caused it (a full file system)."""
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, data[written:], offset + written)


def _clear(fd: int, offset: int, length: int) -> None:
    """Zeroes as a hole. TRIM too: a hole is what a trimmed raw or qcow2 source reads as."""
    if length == 0:
        return
    if _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(code, os.strerror(code))
    for at in range(offset, offset + length, len(_ZEROS)):
        _write(fd, _ZEROS[: offset + length - at], at)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """OSError as DiskError; a full file system by its name."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            hint = "free space there, then protect the VM again"
            raise DiskError(f"replica disk full: {path}", hint=hint) from error
        raise DiskError(f"replica disk {path}: {error.strerror}") from error
