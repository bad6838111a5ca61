# SPDX-License-Identifier: Apache-2.0
"""One JSON object a line over a stream socket, with the length of a line bounded.

Used by the control sockets, between the host daemon and its workers (what they say is in `codec.py`), and for QMP.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

import msgspec

from remusdb.deadline import Deadline
from remusdb.errors import BadFrame
from remusdb.jsontext import parse_object
from remusdb.printable import json_text

MAX_LINE_BYTES = 4 << 20
CHUNK_BYTES = 64 << 10


class LineChannel:
    """A socket that carries JSON objects. Any thread may send; one thread receives."""

    def __init__(self, sock: socket.socket, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._sock = sock
        self._max = max_line_bytes
        self._buffer = bytearray()
        self._send_lock = threading.Lock()
        self.broken = False  # no line can be read any more

    def fileno(self) -> int:
        """The socket's descriptor, for a selector."""
        return self._sock.fileno()

    def send(self, message: object) -> None:
        """Send one object; OSError if the other end is gone, BadFrame for one that no other end would take."""
        line = encoded(message) + b"\n"
        if len(line) > MAX_LINE_BYTES:
            raise BadFrame(f"a control line of {len(line)} bytes is too long: {MAX_LINE_BYTES} are taken")
        with self._send_lock:
            self._sock.sendall(line)

    def receive(self, deadline: Deadline | None = None) -> dict[str, Any] | None:
        """The next line as an object whose fields are looked at later, or None: see `line`.

        BadFrame for a line that is none; unless `broken`, the next line may be asked for then.
        """
        line = self.line(deadline)
        return None if line is None else _parse(line)

    def line(self, deadline: Deadline | None = None) -> bytes | None:
        """The next line, or None when the other end closed between two lines. BadFrame: no further line can be read.

        TimeoutError if there is none by the deadline, however slowly bytes trickle in.
        """
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > self._max:
                raise self._break(f"a control line is longer than {self._max} bytes")
            if deadline is not None:
                self._sock.settimeout(deadline.timeout_s())
            chunk = self._sock.recv(CHUNK_BYTES)
            if not chunk:
                if self._buffer:
                    raise self._break("the control stream ended in the middle of a line")
                return None
            self._buffer += chunk
        if end > self._max:
            raise self._break(f"a control line is longer than {self._max} bytes")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _break(self, why: str) -> BadFrame:
        self.broken = True
        return BadFrame(why)

    def close(self) -> None:
        """Close both directions; a thread blocked in `receive` sees the end."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # not connected any more: closing is all that is left
        self._sock.close()


def _parse(line: bytes) -> dict[str, Any]:
    try:
        return parse_object(line)
    except ValueError as exc:
        raise BadFrame(f"a control line is not a JSON object: {exc}") from exc


def encoded(message: object) -> bytes:
    """What msgspec encodes, as JSON on one line; a path as its text."""
    try:
        return msgspec.json.encode(message, enc_hook=str)
    except UnicodeEncodeError:  # half a character, of a file's name perhaps
        return json_text(message).encode()
