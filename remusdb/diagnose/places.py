# SPDX-License-Identifier: Apache-2.0
"""Reading for a bug report, from folders in which QEMU's user and others may write.

Invariant: what is read is a regular file, by its only name, in the very folder that was named; never a link, a device,
a FIFO that waits for a writer, or something outside. And never more than was allowed for: of a log, its end.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from remusdb.safefiles import open_folder, reopen

NAMES_MOST = 4096  # looked at in a folder
PROGRAM_S = 20.0


class Unread(Exception):
    """Why something is not in the bundle, in words."""


def tail(path: Path, most: int) -> tuple[str, bool]:
    """The end of a file, at most so many bytes, and whether it is all of it. Unread says why not."""
    try:
        folder = open_folder(path.parent)
        try:
            fd = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise Unread("not a regular file with one name")
            whole = found.st_size <= most
            file.seek(max(0, found.st_size - most))
            data = file.read(most)
    except OSError as exc:
        raise Unread(f"{exc.strerror}") from exc
    if not whole:  # its first line is cut: perhaps behind the name of what it holds
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace"), whole


def names(folder: Path, beginning: str = "", end: str = "") -> Iterator[str]:
    """Names in a folder that begin and end so, in their order; none where no such folder can be read."""
    try:
        at = open_folder(folder)
        try:
            fd = reopen(at, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(at)
        try:
            with os.scandir(fd) as entries:
                found = [entry.name for entry in islice(entries, NAMES_MOST)]
        finally:
            os.close(fd)
    except OSError:
        return
    yield from sorted(name for name in found if name.startswith(beginning) and name.endswith(end))


def printed(command: Sequence[str], most: int) -> str:
    """What a program of this host prints, at most so many bytes of its end. Unread if it cannot be run, or fails."""
    env = {**os.environ, "LC_ALL": "C", "PAGER": "cat", "SYSTEMD_COLORS": "0"}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROGRAM_S, check=False, env=env
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Unread(f"{exc}") from exc
    if done.returncode:
        raise Unread(f"exit code {done.returncode}: {done.stderr[-500:].decode(errors='replace').strip()}")
    return done.stdout[-most:].decode(errors="replace")
