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

_REQUEST = struct.Struct("=B3xIQd")
_REPLY = struct.Struct("=B3xIQQQQQ")
MESSAGE_MAX_BYTES = 128 << 10  # a kernel's socket buffer takes 200 KB; the open flows of one interface are at most half


class Op(enum.IntEnum):
    """What the worker asks for."""

    HOLD = 1
    MARK = 2
    RELEASE = 3
    OPEN_ALL = 4
    DROP_HELD = 5
    METRICS = 6
    FLUSH = 7  # answered once the tap is drained and everything released has been sent
    FLOWS = 8  # those that were open at the last mark


class Status(enum.IntEnum):
    """How it went."""

    DONE = 1
    EPOCH_ORDER = 2


@dataclass(frozen=True)
class Request:
    """What is asked of the gate's process; the answer has the same sequence number.

    `early_until`: of a release; until then, by the monotonic clock in seconds, the rule may let frames go early.
    """

    op: Op
    sequence: int
    epoch: int = 0
    early_until: float = 0.0

    def pack(self) -> bytes:
        """As one packet."""
        return _REQUEST.pack(self.op, self.sequence, self.epoch, self.early_until)

    @staticmethod
    def unpack(data: bytes) -> Request:
        """GateError for what is no request."""
        try:
            op, sequence, epoch, early_until = _REQUEST.unpack(data)
            return Request(Op(op), sequence, epoch, early_until)
        except (struct.error, ValueError) as error:
            raise GateError(f"the gate's process got what is no request: {error}") from error


@dataclass(frozen=True)
class Reply:
    """How it went, and the counters at that moment. `flows`: the open ones that were asked for, packed."""

    status: Status
    sequence: int
    held_frames: int = 0
    held_bytes: int = 0
    released_frames: int = 0
    dropped_frames: int = 0
    early_frames: int = 0
    flows: bytes = b""

    def pack(self) -> bytes:
        """As one packet."""
        counters = (self.held_frames, self.held_bytes, self.released_frames, self.dropped_frames, self.early_frames)
        return _REPLY.pack(self.status, self.sequence, *counters) + self.flows

    @staticmethod
    def unpack(data: bytes) -> Reply:
        """GateError for what is no reply."""
        try:
            status, sequence, held, size, released, dropped, early = _REPLY.unpack(data[: _REPLY.size])
            flows = data[_REPLY.size :]
            return Reply(Status(status), sequence, held, size, released, dropped, early, flows)
        except (struct.error, ValueError) as error:
            raise GateError(f"the gate's process sent what is no reply: {error}") from error
