# SPDX-License-Identifier: Apache-2.0
"""Which bytes of a server's replies left in marked packets: a packet socket on loopback, in a namespace of its own.

What the client got is told apart message by message, as PostgreSQL's protocol 3.0 has it, so that a test can say which
message may be marked and which may not.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

DSCP = 16
PORT = 5432
_ETH_P_IP = 0x0800
_OUTGOING = 4  # PACKET_OUTGOING: loopback shows each frame twice
_QUIET_S = 0.05


@dataclass(frozen=True)
class Message:
    """One message of the server: its type, its content, and whether all, some or none of it was marked at first."""

    kind: str
    body: bytes
    marked: bool | None  # None: some of it

    @property
    def word(self) -> str:
        """Of a CommandComplete its tag, of a ReadyForQuery the state, else nothing."""
        return self.body.rstrip(b"\0").decode() if self.kind in "CZ" else ""


class Wire:
    """Of one connection, from `local_port` of the client."""

    def __init__(self, local_port: int) -> None:
        self._port = local_port
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 26)
        self._socket.bind(("lo", _ETH_P_IP))
        self.again: list[tuple[bytes, bool]] = []  # what was sent a second time

    def messages(self) -> list[Message]:
        """What the server said since the last call; it has said all. It begins with a message."""
        time.sleep(_QUIET_S)
        data, marks = bytearray(), bytearray()
        start: int | None = None
        for sequence, payload, marked in self._segments():
            start = sequence if start is None else start
            at = (sequence - start) % (1 << 32)
            if at < len(data):
                self.again.append((payload, marked))
            new = payload[max(0, len(data) - at) :] if at < 1 << 31 else b""
            data += new
            marks += bytes([marked]) * len(new)
        return list(_split(bytes(data), bytes(marks)))

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()

    def _segments(self) -> Iterator[tuple[int, bytes, bool]]:
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, address = self._socket.recvfrom(1 << 17)
                header, total = (packet[0] & 15) * 4, struct.unpack_from("!H", packet, 2)[0]
                if address[2] == _OUTGOING or packet[9] != socket.IPPROTO_TCP:
                    continue
                source, destination, sequence = struct.unpack_from("!HHI", packet, header)
                payload = packet[header + (packet[header + 12] >> 4) * 4 : total or None]
                if (source, destination) == (PORT, self._port) and payload:
                    yield sequence, payload, packet[1] >> 2 == DSCP


def _split(data: bytes, marks: bytes) -> Iterator[Message]:
    at = 0
    while at < len(data):
        end = at + 1 + struct.unpack_from("!I", data, at + 1)[0]
        found = set(marks[at:end])
        yield Message(chr(data[at]), data[at + 5 : end], None if len(found) > 1 else bool(found.pop()))
        at = end
