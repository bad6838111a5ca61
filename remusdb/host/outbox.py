# SPDX-License-Identifier: Apache-2.0
"""What was or is to be sent to the agent: frames of the epochs in flight, kept until they are acknowledged.

Invariant: epochs go out in order; after a reconnection those that the agent does not hold go out again, the
same bytes. A dead connection loses nothing: frames wait here.
"""

from __future__ import annotations

import threading
import time

from remusdb.core.wire import FrameType
from remusdb.errors import PeerUnreachable
from remusdb.host.encoder import EpochFrames
from remusdb.transport.stream import FrameStream


class Outbox:
    """The sending side of one session."""

    def __init__(self, seed_bytes_s: float = 0.0) -> None:
        """`seed_bytes_s`: bound of the initial copy's rate, 0 for none."""
        self._seed_bytes_s = seed_bytes_s
        self._seed_due = 0.0
        self._lock = threading.Lock()
        self._kept: dict[int, EpochFrames] = {}
        self._stream: FrameStream | None = None
        self.term = 0

    def attach(self, stream: FrameStream, term: int, committed: int) -> None:
        """Use this connection from now on; what the agent does not hold goes out first."""
        with self._lock:
            self._kept = {number: frames for number, frames in self._kept.items() if number > committed}
            self._stream, self.term = stream, term
            for number in sorted(self._kept):
                self._send(self._kept[number])

    def detach(self) -> None:
        """The connection is dead: whoever sends on it is freed, and frames wait."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def ship(self, frames: EpochFrames) -> None:
        """Send an epoch, or keep it for the next connection."""
        with self._lock:
            self._kept[frames.epoch] = frames
            self._send(frames)

    def acked(self, epoch: int) -> None:
        """The agent holds everything up to `epoch`: forget it."""
        for number in [number for number in list(self._kept) if number <= epoch]:
            self._kept.pop(number, None)

    def seed(self, frames: list[tuple[FrameType, bytes]]) -> None:
        """Send parts of the initial copy (epoch 0). PeerUnreachable ends the copy."""
        stream = self._stream
        if stream is None:
            raise PeerUnreachable("the connection to the agent was lost during the initial copy")
        self._keep_rate(sum(len(payload) for _, payload in frames))
        stream.send_many([(kind, self.term, 0, payload) for kind, payload in frames])

    def _keep_rate(self, size: int) -> None:
        """Wait so that the initial copy keeps to its rate; what was not used is not saved up."""
        if not self._seed_bytes_s:
            return
        now = time.monotonic()
        time.sleep(max(0.0, self._seed_due - now))
        self._seed_due = max(self._seed_due, now) + size / self._seed_bytes_s

    def say(self, kind: FrameType, payload: bytes = b"") -> None:
        """Send a control frame if there is a connection."""
        stream = self._stream
        if stream is None:
            return
        try:
            stream.send(kind, self.term, 0, payload)
        except PeerUnreachable:
            stream.close()

    def _send(self, frames: EpochFrames) -> None:
        stream = self._stream  # `detach` may take it away meanwhile: that is what frees a blocked send
        if stream is None:
            return
        try:
            stream.send_many([(kind, self.term, frames.epoch, payload) for kind, payload in frames.frames])
        except PeerUnreachable:
            stream.close()
