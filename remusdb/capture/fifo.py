# SPDX-License-Identifier: Apache-2.0
"""The FIFO through which QEMU hands its device state, and holds still meanwhile.

`xen-save-devices-state` on a running VM stops it, writes the state, and starts it again. Into a FIFO that has room for
less than that QEMU cannot finish before we read: between its first byte and our reading the rest, the VM is stopped.
The more room there is, the more of its state QEMU puts together meanwhile (2 to 3 ms of work, on a core that the VM
does not need now); `Room` says how much there may be, and `held` whether it was not too much. If we die, the write
fails with EPIPE and QEMU starts the VM by itself.
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

from remusdb.capture.kernel import F_SETPIPE_SZ
from remusdb.core.devices import MAX_DEVICE_STATE_BYTES
from remusdb.deadline import Deadline
from remusdb.errors import VmError
from remusdb.safefiles import make_fifo, open_folder, remove, reopen

NAME = "remusdb-state"
HUNG_UP_S = 0.005
PIPE_BYTES = 4096  # the least room; QEMUFile writes 32 KiB at a time (migration/qemu-file.c), so its first write blocks
MANY_STATES = 200  # before more than the least room is believed in
CHUNK_BYTES = 1 << 16
WIDE_BYTES = 1 << 20  # /proc/sys/fs/pipe-max-size, by default: more than any usual device state


class StateFifo:
    """A FIFO that the QEMU with owner `uid`/`gid` may write, and its guard process."""

    def __init__(self, folder: Path, uid: int, gid: int) -> None:
        """`folder`: libvirt's of this VM. QEMU may write there, so its name for the FIFO is QEMU's alone: here it is
        known by its descriptor. VmError when it cannot be made."""
        self.path = folder / NAME  # for QEMU
        self._folder = self._fifo = -1
        try:
            self._folder = open_folder(folder)
            self._fifo = make_fifo(self._folder, NAME, uid, gid)
            # -P: no module of the folder that this process happens to be in.
            command = [sys.executable, "-P", "-m", "remusdb.capture.guard", str(self._fifo), str(self._folder), NAME]
            fds = (self._fifo, self._folder)
            self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, pass_fds=fds)
        except (OSError, VmError) as exc:
            self._unlink()
            self._release()
            raise VmError(f"the FIFO for QEMU's device state cannot be made: {exc}") from exc

    def guarded(self) -> bool:
        """Whether the guard lives: without it, our death could leave QEMU waiting."""
        return self._guard.poll() is None

    def open(self, room: int = PIPE_BYTES) -> int:
        """The read end for one cut, with room for so many bytes, a power of two, or for less where that is not allowed.

        The caller closes it, whatever happens.
        """
        fd = reopen(self._fifo, os.O_RDONLY | os.O_NONBLOCK)
        try:
            try:
                fcntl.fcntl(fd, F_SETPIPE_SZ, room)
            except OSError:  # pipe-user-pages-soft
                fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            os.close(fd)
            raise
        return fd

    def abandon(self) -> None:
        """A save may still come that nobody will read: no name any more, and the guard reads for who has opened it.

        To be called before the read end is closed. There is no cut after this.
        """
        self._unlink()
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
        self._unlink()
        self._release()

    def _unlink(self) -> None:
        with contextlib.suppress(OSError):
            remove(self._folder, NAME)

    def _release(self) -> None:
        for fd in (self._fifo, self._folder):
            if fd >= 0:
                os.close(fd)
        self._folder = self._fifo = -1


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


class Room:
    """How much room the FIFO may have: less than QEMU's next state will be long.

    A state may be much shorter than the one before: that of an IDE disk by 128 KiB, once a transfer is over. So what
    counts is the shortest of many, and half of that.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._least = 0

    def saw(self, state_bytes: int) -> None:
        """A state was so long."""
        self._least = min(self._least, state_bytes) if self._seen else state_bytes
        self._seen += 1

    def bytes(self, read_bytes: int) -> int:
        """A power of two, for the next state, of which so much is read while QEMU is to wait."""
        most = min(WIDE_BYTES, self._least // 2 - read_bytes) if self._seen >= MANY_STATES else 0
        return max(PIPE_BYTES, 1 << (most.bit_length() - 1) if most > 0 else 0)


def held(fd: int) -> bool:
    """Whether QEMU still waits. Where it does not, it may have started the VM: it closes the FIFO right before that."""
    poller = select.poll()
    poller.register(fd, 0)
    return not poller.poll(0)


def widen(fd: int) -> None:
    """QEMU need not wait any longer: let it write at its own speed, and start the VM, while this side reads."""
    with contextlib.suppress(OSError):  # not allowed so much: it takes a little longer
        fcntl.fcntl(fd, F_SETPIPE_SZ, WIDE_BYTES)


def drain(fd: int, timeout_s: float, least: int | None = None) -> bytes:
    """Everything until the writer closes, or `least` bytes; VmError when that takes longer, or when it is more than any
    device state."""
    deadline = Deadline.after(timeout_s)
    parts: list[bytes] = []
    had = 0
    while least is None or had < least:
        try:
            part = os.read(fd, CHUNK_BYTES if least is None else min(CHUNK_BYTES, least - had))
        except BlockingIOError:
            if deadline.over or not select.select([fd], [], [], timeout_s)[0]:
                raise VmError(f"QEMU stopped handing its device state for {timeout_s:g} s") from None
            continue
        if not part:
            break
        parts.append(part)
        had += len(part)
        if had > MAX_DEVICE_STATE_BYTES or deadline.over:
            raise VmError(f"QEMU hands {had} bytes of device state and does not come to an end")
    return b"".join(parts)
