# SPDX-License-Identifier: Apache-2.0
"""A cable that is slow: takes frames from a port and from a tap, and passes each on to the other one, later.

    python -m tools.faults.delay PORT OUT_S IN_S        in the LAN's namespace, until it is killed

The tap's name is printed once it is there; who started this puts it into the bridge in the port's place. Frames
pass as the kernel has them, unsegmented and without finished checksums, behind a `virtio_net_hdr`.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from remusdb.net.tuntap import FRAME_MAX_BYTES, open_tap

_ETH_P_ALL = 3
_SOL_PACKET, _ADD_MEMBERSHIP, _PROMISCUOUS, _VNET_HDR, _IGNORE_OUTGOING = 263, 1, 1, 15, 23
_BUFFER_BYTES = 16 << 20
_BATCH = 64


class Way:
    """One direction: a queue of frames with the time when each is due."""

    def __init__(self, read: Callable[[], bytes], write: Callable[[bytes], int], delay_s: float) -> None:
        self._read, self._write, self._delay_s = read, write, delay_s
        self._frames: deque[tuple[float, bytes]] = deque()

    def take(self) -> None:
        """What has come."""
        with suppress(BlockingIOError):
            for _ in range(_BATCH):
                self._frames.append((time.monotonic() + self._delay_s, self._read()))

    def give(self) -> float | None:
        """Pass on what is due; gives the seconds until the next frame is, None if there is none."""
        while self._frames:
            left = self._frames[0][0] - time.monotonic()
            if left > 0:
                return left
            with suppress(OSError):  # no room on the other side: lost, as on any cable
                self._write(self._frames.popleft()[1])
        return None


def _port_socket(port: str) -> socket.socket:
    """All frames that come in at the port, whoever they are for."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    found.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
    found.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    for option in (33, 32):  # SO_RCVBUFFORCE, SO_SNDBUFFORCE
        found.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
    index = socket.if_nametoindex(port)
    membership = index.to_bytes(4, sys.byteorder) + _PROMISCUOUS.to_bytes(2, sys.byteorder) + bytes(10)
    found.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, membership)
    found.bind((port, _ETH_P_ALL))
    found.setblocking(False)
    return found


def main() -> None:
    """Delay what passes this port, until killed: `PORT SECONDS_OUT SECONDS_IN`. The other end's name on stdout."""
    port, out_s, in_s = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    tap = f"w{port}"
    tap_fd = open_tap(tap, persist=False)
    subprocess.run(["ip", "link", "set", tap, "txqueuelen", "20000", "up"], check=True, timeout=20)
    cable = _port_socket(port)
    ways = {
        cable.fileno(): Way(lambda: cable.recv(FRAME_MAX_BYTES), lambda frame: os.write(tap_fd, frame), out_s),
        tap_fd: Way(lambda: os.read(tap_fd, FRAME_MAX_BYTES), cable.send, in_s),
    }
    sys.stdout.write(tap + "\n")
    sys.stdout.flush()
    while True:
        due = [left for way in ways.values() if (left := way.give()) is not None]
        for fd in select.select(list(ways), [], [], min(due, default=None))[0]:
            ways[fd].take()


if __name__ == "__main__":
    main()
