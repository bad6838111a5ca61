# SPDX-License-Identifier: Apache-2.0
"""A disk of the VM that this host keeps aside, copied as the start of a replica's image. It is only read."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from remusdb.errors import DiskError
from remusdb.jsontext import parse_json
from remusdb_agents.sparse import next_data, next_hole, opened, read

log = logging.getLogger(__name__)

INFO_S = 10.0
LOOK_S = 0.05
STEP_BYTES = 4 << 20
FORMATS = ("raw", "qcow2")  # what a protected VM's disks may be
_FICLONE = 0x40049409  # linux/fs.h


@dataclass(frozen=True)
class Kept:
    """A disk that was kept aside, and its format as the VM's definition had it: its content may be the guest's word."""

    path: Path
    format: str


class _Specific(msgspec.Struct, frozen=True):
    data: dict[str, Any] = {}


class _Info(msgspec.Struct, frozen=True, rename="kebab"):
    """What `qemu-img info` says of an image."""

    virtual_size: int = -1
    backing_filename: str | None = None
    format_specific: _Specific = _Specific()


def fits(kept: Kept, size: int) -> bool:
    """Whether it is a disk of exactly `size` bytes that stands on its own; if not, that is logged."""
    try:
        wide, alone = _look(kept)
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        log.warning("the disk kept as %s is not used: %s", kept.path, exc)
        return False
    if wide != size or not alone:
        others = "" if alone else ", with other files"
        log.warning("the disk kept as %s does not fit the VM's of %d bytes: %d bytes%s", kept.path, size, wide, others)
    return wide == size and alone


def _look(kept: Kept) -> tuple[int, bool]:
    """Its size as the guest saw it, and whether it needs no other file."""
    if kept.format not in FORMATS:
        raise ValueError(f"its format is {kept.format or 'not known'}")
    if kept.format == "raw":
        return _raw_bytes(kept.path), True
    if not stat.S_ISREG(kept.path.stat().st_mode):
        raise ValueError("it is not a file")
    command = ["qemu-img", "info", "-U", "-f", kept.format, "--output=json", "--", str(kept.path)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=INFO_S, check=False)
    info = parse_json(said.stdout or "{}", _Info)
    refers = info.backing_filename is not None or "data-file" in info.format_specific.data
    return info.virtual_size, not refers


def _raw_bytes(path: Path) -> int:
    with opened_kept(path) as file:
        return os.lseek(file, 0, os.SEEK_END)


def fill(image: Path, size: int, kept: Kept, room: int, stop: threading.Event) -> None:
    """Make the empty `image` of `size` bytes a copy of `kept`. Where that fails it is empty again; that is logged.

    `room`: bytes that may be taken; blocks that the file system shares take none.
    """
    source = kept.path
    log.info("%s: starts as a copy of %s", image, source)
    try:
        if kept.format == "raw" and _share(source, image):
            return
        found = source.stat()
        if (need := found.st_blocks * 512 if stat.S_ISREG(found.st_mode) else size) > room:
            raise DiskError(f"{need} bytes needed, {room} free")
        if kept.format == "raw":
            _copy(source, image, size, stop)
        else:
            _convert(source, kept.format, image, stop)
    except (OSError, DiskError) as exc:
        log.warning("%s cannot be copied to %s, which starts empty: %s", source, image, exc)
        os.truncate(image, 0)
        os.truncate(image, size)


@contextlib.contextmanager
def opened_kept(path: Path) -> Iterator[int]:
    """A kept disk's descriptor: a file, or a block device, which may be named by a link (/dev/vg0/db1)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if path.is_block_device() else os.O_NOFOLLOW | os.O_NONBLOCK))
    try:
        if not (stat.S_ISREG(mode := os.fstat(fd).st_mode) or stat.S_ISBLK(mode)):
            raise OSError("it is neither a file nor a block device")
        yield fd
    finally:
        os.close(fd)


def _share(source: Path, image: Path) -> bool:
    """False where the two are on file systems that cannot share blocks."""
    with opened_kept(source) as old, opened(image, os.O_RDWR) as new:
        try:
            fcntl.ioctl(new, _FICLONE, old)
        except OSError:
            return False
    return True


def _copy(source: Path, image: Path, size: int, stop: threading.Event) -> None:
    with opened_kept(source) as old, opened(image, os.O_RDWR) as new:
        at = 0
        while (at := next_data(old, at, size)) < size and not stop.is_set():
            length = min(STEP_BYTES, next_hole(old, at, size) - at)
            at += os.pwrite(new, read(old, at, length), at)


def _convert(source: Path, kind: str, image: Path, stop: threading.Event) -> None:
    """Fill the empty `image` from a disk of another format. qemu-img dies with this thread: it must not go on writing
    into what the next agent calls a replica."""
    command = ["setpriv", "--pdeathsig", "KILL", "qemu-img", "convert", "-n", "--target-is-zero"]
    command += ["-f", kind, "-O", "raw", "--", str(source), str(image)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            if stop.wait(LOOK_S):
                child.kill()
        _, said = child.communicate()
    if child.returncode:
        raise DiskError(f"qemu-img convert: {said.strip() or child.returncode}")
