# SPDX-License-Identifier: Apache-2.0
"""A disk of the VM that this host keeps aside, copied as the start of a replica's image. It is only read."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
import subprocess
import threading
from pathlib import Path

from remusdb.errors import DiskError
from remusdb_agents.sparse import next_data, next_hole, opened, read

log = logging.getLogger(__name__)

INFO_S = 10.0
LOOK_S = 0.05
STEP_BYTES = 4 << 20
FORMATS = ("raw", "qcow2")  # what a protected VM's disks may be
_FICLONE = 0x40049409  # linux/fs.h


def usable_format(path: Path, size: int) -> str:
    """The format of a kept disk of exactly `size` bytes that stands on its own; empty for any other.

    The format is guessed from the content, which is the guest's. A wrong guess makes a useless base and no more, as
    long as no file is opened that only the content names.
    """
    command = ["qemu-img", "info", "-U", "--output=json", "--", str(path)]
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is not a file")
        said = subprocess.run(command, capture_output=True, text=True, timeout=INFO_S, check=False)
        info = json.loads(said.stdout or "{}")
        wide, kind = info.get("virtual-size"), str(info.get("format"))
        refers = "backing-filename" in info or "data-file" in info.get("format-specific", {}).get("data", {})
        if kind not in FORMATS or wide != size or refers:
            raise ValueError(f"format {kind}, {wide} bytes" + (", with other files" if refers else ""))
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        log.warning("the disk kept as %s does not fit the VM's of %d bytes: %s", path, size, exc)
        return ""
    return kind


def fill(image: Path, size: int, source: Path, kind: str, room: int, stop: threading.Event) -> None:
    """Make the empty `image` of `size` bytes a copy of `source`. Where that fails it is empty again; that is logged.

    `room`: bytes that may be taken; blocks that the file system shares take none.
    """
    log.info("%s: starts as a copy of %s", image, source)
    try:
        if kind == "raw" and _share(source, image):
            return
        if (need := source.stat().st_blocks * 512) > room:
            raise DiskError(f"{need} bytes needed, {room} free")
        if kind == "raw":
            _copy(source, image, size, stop)
        else:
            _convert(source, kind, image, stop)
    except (OSError, DiskError) as exc:
        log.warning("%s cannot be copied to %s, which starts empty: %s", source, image, exc)
        os.truncate(image, 0)
        os.truncate(image, size)


def _share(source: Path, image: Path) -> bool:
    """False where the two are on file systems that cannot share blocks."""
    with opened(source, os.O_RDONLY) as old, opened(image, os.O_RDWR) as new:
        try:
            fcntl.ioctl(new, _FICLONE, old)
        except OSError:
            return False
    return True


def _copy(source: Path, image: Path, size: int, stop: threading.Event) -> None:
    with opened(source, os.O_RDONLY) as old, opened(image, os.O_RDWR) as new:
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
