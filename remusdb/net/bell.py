# SPDX-License-Identifier: Apache-2.0
"""Rings when the VM says something: output waits, an epoch is wanted.

Owns one packet socket a tap. Its kernel filter leaves out what a gate lets go, which passes the tap once more, and one
byte a frame is kept. The buffer is as small as the kernel allows: after a few frames the others are not even looked at,
until it is emptied. So a VM that sends much pays nothing for it. Any gate can be behind the tap.

With commit protection not every frame waits: there the gates themselves ring, once after each mark, by an eventfd.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import threading
from collections.abc import Sequence

from remusdb.errors import GateError
from remusdb.net.bpf import one_byte_but_mark
from remusdb.net.tapgate import MARK

_ETH_P_ALL = 3
_SO_ATTACH_FILTER = 26
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_SMALLEST = 1  # the kernel makes it SOCK_MIN_RCVBUF


class Bell:
    """Of all interfaces of one VM. `wake` is for any thread, the rest for one."""

    def __init__(self, taps: Sequence[str], gates_fd: int | None = None) -> None:
        """`gates_fd`: the eventfd that gates ring, of whoever made it. GateError when a tap cannot be listened to."""
        self._gates_fd = gates_fd
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._rung = False
        try:
            for tap in taps:
                self._sockets.append(_listen(tap))
        except OSError as error:
            self.close()
            raise GateError(f"cannot listen to {tap}: {error}", hint="run as root") from error

    def wait(self, seconds: float) -> bool:
        """Whether anything was said since `reset`. Waits for that, for `wake`, or so long."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if not self._rung:
            for one in self._sockets:
                poll.register(one, select.POLLIN)
            if self._gates_fd is not None:
                poll.register(self._gates_fd, select.POLLIN)
        ready = [fd for fd, events in poll.poll(1000 * seconds) if events & select.POLLIN]
        if self._wake in ready:
            os.eventfd_read(self._wake)
        self._rung = self._rung or bool(set(ready) - {self._wake})
        return self._rung

    def wake(self) -> None:
        """End a wait, the one that comes next at the latest. Also after `close`."""
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def reset(self) -> None:
        """Forget what was said so far: it is of the epoch that is being cut. The VM stands still, so this ends."""
        self._rung = False
        for one in self._sockets:
            with contextlib.suppress(OSError):  # nothing more there, or the tap is gone
                while True:
                    one.recv(1)

    def marked(self) -> None:
        """The gates have made their marks, and the VM stands still: what they rang for is of the epoch that is cut."""
        if self._gates_fd is not None:
            self._rung = False
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._gates_fd)

    def close(self) -> None:
        """Listen no more. For the thread that waits."""
        for one in self._sockets:
            one.close()
        with self._wake_lock:
            os.close(self._wake)
            self._wake = -1


def _listen(tap: str) -> socket.socket:
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    program = ctypes.create_string_buffer(one_byte_but_mark(MARK))
    try:
        one.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)  # what the VM is sent
        filter_at = struct.pack("HL", (len(program) - 1) // 8, ctypes.addressof(program))
        one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_at)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALLEST)
        one.bind((tap, _ETH_P_ALL))
    except OSError:
        one.close()
        raise
    return one
