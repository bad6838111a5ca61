# SPDX-License-Identifier: Apache-2.0
"""Who speaks as the VM: every frame with the VM's address that comes out of a host, with the kernel's time of it.

Invariant that is checked: once a frame came out of the new host, none comes out of the old one any more.
"""

from __future__ import annotations

import ctypes
import errno
import select
import socket
import struct
import threading
from dataclasses import dataclass
from itertools import pairwise

from tools.lab import Lab
from tools.lab.links import socket_in

_ETH_P_ALL = 3
_SOL_PACKET, _IGNORE_OUTGOING = 263, 23
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_SNAP = 64  # bytes of a frame


@dataclass(frozen=True)
class Frame:
    """One frame of the VM: when it reached the switch (CLOCK_REALTIME), and from which host."""

    at_ns: int
    host: str


class Speakers:
    """Listens at both hosts' ports of the LAN until it is closed. A filter drops what is not the VM's."""

    def __init__(self, lab: Lab, mac: str) -> None:
        self._frames: list[Frame] = []
        self._lock = threading.Lock()
        self._sockets = {_listener(lab, lab.host(name).port, mac): name for name in ("a", "b")}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="speakers", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Forget what was heard."""
        with self._lock:
            self._frames.clear()

    def frames(self) -> list[Frame]:
        """What was heard since `begin()`, in the order of the kernel's times."""
        with self._lock:
            return sorted(self._frames, key=lambda frame: frame.at_ns)

    def complaints(self, moves: int) -> list[str]:
        """What is wrong with it, if the VM has moved from one host to the other at most so many times."""
        frames = self.frames()
        changes = [(earlier, later) for earlier, later in pairwise(frames) if earlier.host != later.host]
        if len(changes) <= moves:
            return []
        first, wrong = changes[0][1], changes[moves][1]
        late_ms = (wrong.at_ns - first.at_ns) / 1e6
        return [
            f"two speakers: {wrong.host} sent a frame of the VM {late_ms:.1f} ms after {first.host} had begun to speak"
        ]

    def close(self) -> None:
        """Listen no longer."""
        self._closed.set()
        self._thread.join(5)
        for sock in self._sockets:
            sock.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            for sock in select.select(list(self._sockets), [], [], 0.2)[0]:
                self._take(sock, self._sockets[sock])

    def _take(self, sock: socket.socket, host: str) -> None:
        found: list[Frame] = []
        try:
            while len(found) < 256:
                _data, extra, _flags, _address = sock.recvmsg(_SNAP, socket.CMSG_SPACE(16))
                for _level, kind, value in extra:
                    if kind == _SO_TIMESTAMPNS:
                        seconds, nanoseconds = struct.unpack("=qq", value)
                        found.append(Frame(seconds * 10**9 + nanoseconds, host))
        except OSError as error:
            # A port that goes down tells so once; the socket hears on when it is up again.
            if error.errno not in (errno.EAGAIN, errno.ENETDOWN):
                raise
        with self._lock:
            self._frames += found


def _listener(lab: Lab, port: str, mac: str) -> socket.socket:
    sock = socket_in(lab.lan, socket.AF_PACKET, socket.SOCK_RAW, 0)
    address = bytes.fromhex(mac.replace(":", ""))
    high, low = struct.unpack("!HI", address)
    program = b"".join(
        struct.pack("=HBBI", *operation)
        for operation in (
            (0x28, 0, 0, 6),  # the first two bytes of the source
            (0x15, 0, 3, high),
            (0x20, 0, 0, 8),  # its other four
            (0x15, 0, 1, low),
            (0x06, 0, 0, _SNAP),
            (0x06, 0, 0, 0),
        )
    )
    buffer = ctypes.create_string_buffer(program)
    wanted = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, wanted)
    sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.bind((port, _ETH_P_ALL))
    sock.setblocking(False)
    return sock
