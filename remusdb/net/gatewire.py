# SPDX-License-Identifier: Apache-2.0
"""What TapGate and its process say to each other: one packet a message over a SOCK_SEQPACKET pair.

The worker asks, the process answers with the same sequence number. The pair ends with either process, so EOF
means that the other one is dead.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from remusdb.errors import GateError

_REQUEST = struct.Struct("=B3xIQ")
_REPLY = struct.Struct("=B3xIQQQQ")
MESSAGE_MAX_BYTES = 256


class Op(enum.IntEnum):
    """What the worker asks for."""

    HOLD = 1
    MARK = 2
    RELEASE = 3
    OPEN_ALL = 4
    DROP_HELD = 5
    METRICS = 6
    FLUSH = 7  # answered once the tap is drained and everything released has been sent


class Status(enum.IntEnum):
    """How it went."""

    DONE = 1
    EPOCH_ORDER = 2


@dataclass(frozen=True)
class Request:
    """What is asked of the gate's process; the answer has the same sequence number."""

    op: Op
    sequence: int
    epoch: int = 0

    def pack(self) -> bytes:
        """As one packet."""
        return _REQUEST.pack(self.op, self.sequence, self.epoch)

    @staticmethod
    def unpack(data: bytes) -> Request:
        """GateError for what is no request."""
        try:
            op, sequence, epoch = _REQUEST.unpack(data)
            return Request(Op(op), sequence, epoch)
        except (struct.error, ValueError) as error:
            raise GateError(f"the gate's process got what is no request: {error}") from error


@dataclass(frozen=True)
class Reply:
    """How it went, and the counters at that moment."""

    status: Status
    sequence: int
    held_frames: int = 0
    held_bytes: int = 0
    released_frames: int = 0
    dropped_frames: int = 0

    def pack(self) -> bytes:
        """As one packet."""
        return _REPLY.pack(
            self.status, self.sequence, self.held_frames, self.held_bytes, self.released_frames, self.dropped_frames
        )

    @staticmethod
    def unpack(data: bytes) -> Reply:
        """GateError for what is no reply."""
        try:
            status, sequence, *metrics = _REPLY.unpack(data)
            return Reply(Status(status), sequence, *metrics)
        except (struct.error, ValueError) as error:
            raise GateError(f"the gate's process sent what is no reply: {error}") from error
