# SPDX-License-Identifier: Apache-2.0
"""The FIFO through which QEMU hands its device state, and holds still meanwhile.

`xen-save-devices-state` on a running VM stops it, writes the state, and starts it again. Into a FIFO whose
buffer is one page QEMU cannot finish before we read: between its first byte and our reading the rest, the VM is
stopped. If we die, the write fails with EPIPE and QEMU starts the VM by itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from remusdb.errors import VmError
from remusdb.vm.kernel import F_SETPIPE_SZ

NAME = "remusdb-state"
HUNG_UP_S = 0.005
PIPE_BYTES = 4096  # less than QEMUFile's buffer of 32 KiB (migration/qemu-file.c), so its first write blocks


class StateFifo:
    """A FIFO that the QEMU with owner `uid`/`gid` may write, and its guard process."""

    def __init__(self, folder: Path, uid: int, gid: int) -> None:
        self.path = folder / NAME
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        os.mkfifo(self.path, 0o600)
        os.chown(self.path, uid, gid)
        command = [sys.executable, "-m", "remusdb.vm.guard", str(self.path)]
        self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def guarded(self) -> bool:
        """Whether the guard lives: without it, our death could leave QEMU waiting."""
        return self._guard.poll() is None

    def open(self) -> int:
        """The read end for one cut; the caller closes it, whatever happens."""
        fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES)
        return fd

    def abandon(self) -> None:
        """A save may still come that nobody will read: no name any more, and the guard reads for who has opened it.

        To be called before the read end is closed. There is no cut after this.
        """
        with contextlib.suppress(OSError):
            self.path.unlink()
        if self._guard.stdin is not None:
            self._guard.stdin.close()

    def close(self) -> None:
        """Take the FIFO away and dismiss the guard."""
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            with contextlib.suppress(OSError):
                self._guard.stdin.write(b"q")
                self._guard.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(2)
        with contextlib.suppress(OSError):
            self.path.unlink()


def wait_any(descriptors: Sequence[int], timeout_s: float) -> set[int]:
    """Wait until one of the descriptors is readable: those that are, none when time is up (or a writer just left)."""
    poller = select.poll()
    for fd in descriptors:
        poller.register(fd, select.POLLIN)
    found = poller.poll(timeout_s * 1000)
    ready = {fd for fd, events in found if events & select.POLLIN}
    if found and not ready:
        time.sleep(HUNG_UP_S)  # poll would return at once again
    return ready


def drain(fd: int, timeout_s: float, least: int | None = None) -> bytes:
    """Everything until the writer closes, or `least` bytes and a few more; VmError when that takes longer."""
    end = time.monotonic() + timeout_s
    parts: list[bytes] = []
    while least is None or sum(map(len, parts)) < least:
        try:
            part = os.read(fd, 1 << 16)
        except BlockingIOError:
            if time.monotonic() > end or not select.select([fd], [], [], timeout_s)[0]:
                raise VmError(f"QEMU stopped handing its device state for {timeout_s:g} s") from None
            continue
        if not part:
            break
        parts.append(part)
    return b"".join(parts)
