# SPDX-License-Identifier: Apache-2.0
"""The initial sync's frames that were sent, and that the agent has not said to have taken.

Both sides count the bulk frames of epoch 0 of a session, in the order of the wire. Invariant: after a connection was
lost, `since(taken)` is every frame that the agent lacks, in order, the same bytes; a delta that is applied twice would
spoil the replica, so a count that cannot be true is refused. Sans-IO.
"""

from __future__ import annotations

from collections import deque

from remusdb.core.wire import FrameType
from remusdb.errors import BadFrame

CopyFrame = tuple[FrameType, bytes]


class CopyLog:
    """Frames in flight, at most `max_bytes` of payload, or one frame."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._frames: deque[CopyFrame] = deque()
        self._bytes = 0
        self._taken = 0

    @property
    def waiting(self) -> int:
        """Frames that the agent has not taken."""
        return len(self._frames)

    @property
    def full(self) -> bool:
        """Whether the next frame must wait until the agent has taken some."""
        return self._bytes >= self._max_bytes

    def add(self, frame: CopyFrame) -> None:
        """It is sent now, or with the next connection."""
        self._frames.append(frame)
        self._bytes += len(frame[1])

    def taken(self, count: int) -> None:
        """The agent has taken so many frames since the session began. An older word than the last says nothing."""
        if count > self._taken + len(self._frames):
            raise BadFrame(
                f"the agent took {count} frames of the copy, only {self._taken + len(self._frames)} were sent"
            )
        while self._taken < count:
            self._bytes -= len(self._frames.popleft()[1])
            self._taken += 1

    def since(self, count: int) -> list[CopyFrame]:
        """The agent was greeted again and has `count` frames: what has to be sent again."""
        if count < self._taken:
            raise BadFrame(f"the agent has {count} frames of the copy, it had {self._taken} before")
        self.taken(count)
        return list(self._frames)
