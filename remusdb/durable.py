# SPDX-License-Identifier: Apache-2.0
"""Files that survive a power cut, and locks on files: one writer at a time, of any process.

Invariant: after a call the change is on the disk, whole, or the file is as it was. A lock goes with the last process
that has its descriptor, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from remusdb.deadline import Deadline, poll_until

LOCK_LOOK_S = 0.005  # between tries to get a lock


def write_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Put a file of exactly this content and mode in place of what is there. OSError as the kernel says it.

    Nobody else can read any of it before it has that mode.
    """
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)  # left from before, perhaps for others to read
    try:
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)  # not by `open`, for the umask counts there
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the folder's entries on the disk: after a rename, or a new file."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def take_lock(path: Path, patience_s: float | None) -> int | None:
    """A locked descriptor of this file, made if it is not there; None where it is somebody else's for so long.

    A patience of None has no end. Closed, by everybody who inherited it, it lets go. OSError as the kernel says it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if patience_s is None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd
    if poll_until(lambda: _locked(fd), Deadline.after(patience_s), LOCK_LOOK_S):
        return fd
    os.close(fd)
    return None


@contextmanager
def alone(path: Path, patience_s: float | None) -> Iterator[bool]:
    """Inside, whether this file's lock is ours: it was waited for so long, and goes with the block."""
    fd = take_lock(path, patience_s)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
