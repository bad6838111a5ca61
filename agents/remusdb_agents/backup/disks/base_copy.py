# SPDX-License-Identifier: Apache-2.0
"""A quarantined disk of the VM, copied as the start of a replica's image. It is only read."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from remusdb.errors import DiskError
from remusdb.safefiles import open_file
from remusdb_agents.backup.disks.qcow2 import size_if_alone
from remusdb_agents.backup.disks.sparse import next_data, next_hole, opened, read

log = logging.getLogger(__name__)

LOOK_S = 0.05
STEP_BYTES = 4 << 20
FORMATS = ("raw", "qcow2")  # what a protected VM's disks may be
_FICLONE = 0x40049409  # linux/fs.h


@dataclass(frozen=True)
class QuarantinedDisk:
    """A quarantined disk, and its format as the VM's definition had it: its content may be the guest's word."""

    path: Path
    format: str


def fits(disk: QuarantinedDisk, size: int) -> bool:
    """Whether it is a disk of exactly `size` bytes that stands on its own; if not, that is logged."""
    try:
        wide = _look(disk)
    except (OSError, ValueError) as exc:
        log.warning("the quarantined disk %s is not used: %s", disk.path, exc)
        return False
    if wide != size:
        log.warning("the quarantined disk %s does not fit the VM's of %d bytes: %d bytes", disk.path, size, wide)
    return wide == size


def _look(disk: QuarantinedDisk) -> int:
    """Its size as the guest saw it."""
    if disk.format not in FORMATS:
        raise ValueError(f"its format is {disk.format or 'not known'}")
    with opened_disk(disk.path) as file:
        if disk.format == "raw":
            return os.lseek(file, 0, os.SEEK_END)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ValueError("it is not a file")
        return size_if_alone(file)


def fill(image: Path, size: int, disk: QuarantinedDisk, room: int, stop: threading.Event) -> None:
    """Make the empty `image` of `size` bytes a copy of `disk`. Where that fails it is empty again; that is logged.

    `room`: bytes that may be taken; blocks that the file system shares take none.
    """
    source = disk.path
    log.info("%s: starts as a copy of %s", image, source)
    try:
        if disk.format == "raw" and _share(source, image):
            return
        with opened_disk(source) as file:
            found = os.fstat(file)
        if (need := found.st_blocks * 512 if stat.S_ISREG(found.st_mode) else size) > room:
            raise DiskError(f"{need} bytes needed, {room} free")
        if disk.format == "raw":
            _copy(source, image, size, stop)
        else:
            _convert(source, disk.format, image, stop)
    except (OSError, DiskError) as exc:
        log.warning("%s cannot be copied to %s, which starts empty: %s", source, image, exc)
        os.truncate(image, 0)
        os.truncate(image, size)


@contextlib.contextmanager
def opened_disk(path: Path) -> Iterator[int]:
    """Its descriptor: a file, or a block device, which may be named by a link of root's (/dev/vg0/db1)."""
    fd = open_file(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not (stat.S_ISREG(mode := os.fstat(fd).st_mode) or stat.S_ISBLK(mode)):
            raise OSError("it is neither a file nor a block device")
        yield fd
    finally:
        os.close(fd)


def _share(source: Path, image: Path) -> bool:
    """False where the two are on file systems that cannot share blocks."""
    with opened_disk(source) as old, opened(image, os.O_RDWR) as new:
        try:
            fcntl.ioctl(new, _FICLONE, old)
        except OSError:
            return False
    return True


def _copy(source: Path, image: Path, size: int, stop: threading.Event) -> None:
    with opened_disk(source) as old, opened(image, os.O_RDWR) as new:
        at = 0
        while (at := next_data(old, at, size)) < size and not stop.is_set():
            length = min(STEP_BYTES, next_hole(old, at, size) - at)
            at += os.pwrite(new, read(old, at, length), at)


def _convert(source: Path, kind: str, image: Path, stop: threading.Event) -> None:
    """Fill the empty `image` from a disk of another format. qemu-img dies with this thread: it must not go on writing
    into what the next agent calls a replica."""
    with opened_disk(source) as file:
        named = {"driver": kind, "backing": None, "file": {"driver": "file", "filename": f"/proc/self/fd/{file}"}}
        command = ["setpriv", "--pdeathsig", "KILL", "qemu-img", "convert", "-n", "--target-is-zero"]
        command += ["-O", "raw", "--", f"json:{json.dumps(named)}", str(image)]
        _run(command, file, stop)


def _run(command: Sequence[str], file: int, stop: threading.Event) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=pipe, text=True, pass_fds=(file,)) as child:
        while child.poll() is None:
            if stop.wait(LOOK_S):
                child.kill()
        _, said = child.communicate()
    if child.returncode:
        raise DiskError(f"qemu-img convert: {said.strip() or child.returncode}")
