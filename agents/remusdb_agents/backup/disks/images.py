# SPDX-License-Identifier: Apache-2.0
"""The replica's disks: what committed epochs' writes are applied to.

Owns one sparse raw file a disk in `folder`, and writes to the block device that agent.toml names for one instead.
Invariant: after `apply` of whole epochs in order, each reads like the primary's disk at the last epoch's cut. Records
are applied in order and never beyond a disk's end; an error leaves the images between two epochs, so whoever gets it
must not promote from them.

Files that are kept after a session are the *base* of the next: what is alike in them is not sent again. A device's
content always is one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from remusdb.core.writes import Kind, Record, iter_records
from remusdb.errors import DiskError, RefusedForSafety
from remusdb.safefiles import make_folder
from remusdb_agents.backup.disks.snapshot import Snapshot
from remusdb_agents.backup.disks.sparse import read
from remusdb_agents.backup.standby.devices import Device, open_device

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_ZEROS = bytes(1 << 20)
FILE_MAX_BYTES = (1 << 63) - 1  # off_t
_FULL = (errno.ENOSPC, errno.EDQUOT)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class ReplicaImages:
    """The raw images of one replica VM. One thread applies; any may close: once that returns, nothing is written."""

    def __init__(
        self, folder: Path, sizes: list[int], names: list[str], devices: Mapping[str, Path] | None = None
    ) -> None:
        """Open folder/NAME.raw of exactly `sizes` bytes: a file of that size stays as it is (see `reused`), anything
        else gives way to a sparse one. `devices`: block devices, by name, that stand for a disk instead of a file."""
        if len(sizes) != len(names) or len(set(names)) != len(names):
            raise DiskError(f"{len(sizes)} disk sizes for the names {names}")
        for name, size in zip(names, sizes, strict=True):
            if not 0 <= size <= FILE_MAX_BYTES:
                raise DiskError(f"disk {name} cannot have {size} bytes")
        self.folder = folder
        self.sizes = list(sizes)
        devices = devices or {}
        self.paths = [devices.get(name, folder / f"{_plain(name)}.raw") for name in names]
        self.sources: list[Path | Device] = []  # the same, as a VM's definition needs them
        self._ours: list[Path] = []  # files, which may go
        self.reused: list[bool] = []
        self.spoiled = False  # an image could not be read or written: none of them is a base
        self._files: list[int] = []
        self._lock = threading.Lock()  # between a record and `close`, or who reads a snapshot
        self._snapshot: Snapshot | None = None
        with _explained(folder):
            make_folder(folder)
        try:
            for name, path, size in zip(names, self.paths, sizes, strict=True):
                self._add(path, size, is_device=name in devices)
        except BaseException:  # whatever it was: no descriptor stays, and no file that was made for it
            fresh = [path for path, reused in zip(self.paths, self.reused, strict=False) if not reused]
            self.close()
            self._delete([path for path in fresh if path in self._ours])
            raise

    def _add(self, path: Path, size: int, *, is_device: bool) -> None:
        if is_device:
            file, device = open_device(path, size)
            self.sources.append(device)
            reused = True
        else:
            file, reused = _open(path, size)
            self.sources.append(path)
            self._ours.append(path)
        self._files.append(file)
        self.reused.append(reused)

    def apply(self, raw_records: bytes) -> None:
        """Apply the records of one epoch (or a part of the initial sync), in order."""
        for record in iter_records(raw_records):
            self._check(record)
            with self._lock:
                self._apply(record)

    def _apply(self, record: Record) -> None:
        if not self._files:
            raise DiskError("replica images are closed")
        if self._snapshot is not None:
            self._snapshot.before(record.disk, record.offset, record.length)
        try:
            with _explained(self.paths[record.disk]):
                if record.kind is Kind.WRITE:
                    _write(self._files[record.disk], record.data, record.offset)
                else:
                    _clear(self._files[record.disk], record.offset, record.length)
        except DiskError:
            self.spoiled = True
            raise

    def will_read(self, disk: int, offset: int, length: int) -> None:
        """Have the kernel begin to read these bytes, and wait for nothing."""
        with self._lock, suppress(OSError):
            if self._files:
                os.posix_fadvise(self._files[disk], offset, length, os.POSIX_FADV_WILLNEED)

    def read(self, disk: int, offset: int, length: int) -> memoryview:
        """What these bytes of a disk are now. Whoever applies waits meanwhile; DiskError."""
        with self._lock, _explained(self.paths[disk]):
            if not self._files:
                raise DiskError("replica images are closed")
            return read(self._files[disk], offset, length)

    def _check(self, record: Record) -> None:
        if record.disk >= len(self.sizes):
            raise DiskError(f"write log names disk {record.disk}, there are {len(self.sizes)}")
        end = record.offset + record.length
        if end > self.sizes[record.disk]:
            raise DiskError(f"write log goes to byte {end} of {self.paths[record.disk].name}, beyond its end")

    def room(self) -> int:
        """Bytes that are free on the folder's file system."""
        with _explained(self.folder):
            stats = os.statvfs(self.folder)
        return stats.f_bavail * stats.f_frsize

    def taken(self) -> list[int]:
        """Bytes that each disk takes here; of a block device, all of it."""
        with self._lock:
            return [
                size if isinstance(source, Device) else os.fstat(file).st_blocks * 512
                for size, source, file in zip(self.sizes, self.sources, self._files, strict=False)
            ]

    def free_check(self, allocated: Sequence[int]) -> None:
        """Raise unless there is room for disks that take so many bytes each; what the images take already counts."""
        files = [
            (wanted, os.fstat(file).st_blocks * 512)
            for wanted, file, source in zip(allocated, self._files, self.sources, strict=True)
            if not isinstance(source, Device)
        ]
        needed = sum(max(0, wanted - had) for wanted, had in files)
        free = self.room()
        if free < needed:
            raise DiskError(
                f"not enough room for the replica disks in {self.folder}: {needed} bytes needed, {free} free",
                hint="free space there, or set another images folder in agent.toml",
            )

    def snapshot(self, most_bytes: int) -> Snapshot:
        """The disks as they are now, to be read while more is applied; `end_snapshot` is the caller's to call.

        `most_bytes`: see Snapshot. One at a time.
        """
        with self._lock:
            if not self._files or self._snapshot is not None:
                raise RefusedForSafety("the replica's disks are closed, or being copied")
            self._snapshot = Snapshot(self._lock, self._files, self.sizes, most_bytes)
            return self._snapshot

    def end_snapshot(self, why: str) -> None:
        """Whoever still reads it is told so: RefusedForSafety. Waits for nobody. Idempotent."""
        with self._lock:
            self._end_snapshot(why)

    def _end_snapshot(self, why: str) -> None:
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            snapshot.break_off(RefusedForSafety(why))

    def close(self) -> None:
        """Close the files; the images stay. Idempotent."""
        with self._lock:
            self._end_snapshot("the replica was given up")
            while self._files:
                os.close(self._files.pop())

    def open_to_read(self, disk: int) -> FileIO:
        """What is written here, opened once more for reading."""
        with _explained(self.paths[disk]):
            return FileIO(f"/proc/self/fd/{self._files[disk]}")

    def keep(self) -> None:
        """Close, and leave the images as a base. Those with nothing in them go, and all if one failed: the next session
        then starts from nothing, rather than fail in the same way. Idempotent."""
        open_ones = zip(self.paths, self._files, strict=False)
        empty = {path for path, file in open_ones if os.fstat(file).st_blocks == 0}
        self.close()
        self._delete([path for path in self._ours if self.spoiled or path in empty])

    def remove(self) -> None:
        """Close and delete our files, and the folder if nothing else is in it. Idempotent."""
        self.close()
        self._delete(self._ours)

    def _delete(self, paths: list[Path]) -> None:
        with _explained(self.folder):
            for path in paths:
                path.unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it, or it is a mount point
            self.folder.rmdir()


def _plain(name: str) -> str:
    """The name came over the wire: it must stay inside the folder."""
    if not name or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
        raise DiskError(f"not a disk name: {name!r}")
    return name


def _open(path: Path, size: int) -> tuple[int, bool]:
    """The file, and whether it was there already."""
    with _explained(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_size == size and found.st_blocks:
                return fd, True
            os.ftruncate(fd, size)  # first: a size that cannot be costs the old content nothing
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)
        except BaseException:
            if os.fstat(fd).st_size == 0:  # it was made just now
                path.unlink(missing_ok=True)
            os.close(fd)
            raise
    return fd, False


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
    if code not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):  # the last: a device wants whole sectors
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
