# SPDX-License-Identifier: Apache-2.0
"""What a QEMU said on its stderr: libvirt keeps it in a file a domain."""

from __future__ import annotations

import re
from pathlib import Path

from remusdb.deadline import Deadline, poll_until
from remusdb.printable import printable

FOLDER = Path("/var/log/libvirt/qemu")  # libvirt has no setting for it; NAME.log
LOOK_S = 0.02
WAIT_S = 0.3  # virtlogd writes what it reads from a pipe, so the last words come a little later
MOST_BYTES = 16 << 10
MOST_BYTES_TOLD = 600
# "2026-11-27 09:24:00.123+0000: shutting down, reason=crashed" is libvirt's; QEMU writes the T, or no time at all.
LIBVIRTS = re.compile(r"^\d{4}-\d\d-\d\d \d\d:|^char device redirected|^LC_ALL=|^PATH=|^HOME=|^XDG_|^/")
TIME = re.compile(r"^\d{4}-\d\d-\d\dT\S+Z ")
PROGRAM = re.compile(r"^\S*qemu\S*: ")
# Said of a load that works, too, or of a QEMU that somebody ended.
IDLE = re.compile(r"(^|: )(warning|info): |Expected vmdescription section|^terminating on signal ")


class QemuLog:
    """The log of one domain, from this moment on."""

    def __init__(self, name: str, folder: Path = FOLDER) -> None:
        self._path = folder / f"{name}.log"
        self._from = self._size()

    def words(self, wait_s: float = WAIT_S) -> str:
        """What QEMU has complained of since, in one line; waits a little for it. Empty when there is nothing."""
        return poll_until(lambda: complaints(self._new()), Deadline.after(wait_s), LOOK_S)

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def _new(self) -> str:
        size = self._size()
        since = self._from if self._from <= size else 0  # it was begun again
        try:
            with self._path.open("rb") as file:
                file.seek(max(since, size - MOST_BYTES))
                return file.read(MOST_BYTES).decode(errors="replace")
        except OSError:
            return ""


def complaints(text: str) -> str:
    """QEMU's own lines in such a log, joined; without warnings, times and its name."""
    lines = [PROGRAM.sub("", TIME.sub("", line)).strip() for line in text.splitlines() if not LIBVIRTS.match(line)]
    said = list(dict.fromkeys(line for line in lines if line and not IDLE.search(line)))
    return printable("; ".join(said), MOST_BYTES_TOLD)
