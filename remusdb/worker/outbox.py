# SPDX-License-Identifier: Apache-2.0
"""What was or is to be sent to the agent: frames of the epochs in flight, kept until they are acknowledged.

Invariant: epochs go out in order; after a reconnection those that the agent does not hold go out again, the same but
for their age, and with each page itself where there was a reference. A dead connection loses nothing: frames wait here,
those of the initial sync up to a bound.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from remusdb.core.copylog import CopyFrame, CopyLog
from remusdb.core.wire import FrameType
from remusdb.errors import PeerUnreachable
from remusdb.threads import apart
from remusdb.transport.stream import FrameStream
from remusdb.worker.encoder import EpochFrames

COPY_MAX_BYTES = 64 << 20  # of the initial sync that the agent has not taken: 50 ms of a 10 Gbit/s link
LOOK_S = 0.1


class Outbox:
    """The sending side of one session."""

    def __init__(self, seed_bytes_s: float = 0.0, over: threading.Event | None = None) -> None:
        """`seed_bytes_s`: bound of the initial sync's rate, 0 for none. `over`: once set, nobody waits in here."""
        self._seed_bytes_s = seed_bytes_s
        self._seed_due = 0.0
        self._over = over or threading.Event()
        self._lock = threading.Lock()  # the order on the wire
        self._unacked: dict[int, EpochFrames] = {}
        self._copy = CopyLog(COPY_MAX_BYTES)
        self._copy_moved = threading.Condition()  # taken after `_lock`; never held in a send
        self._stream: FrameStream | None = None
        self._attaching: threading.Thread | None = None
        self.term = 0

    def attach(self, stream: FrameStream, term: int, committed: int, taken: int = 0) -> None:
        """Use this connection from now on; what the agent does not hold goes out first.

        `committed`: the last epoch it holds; `taken`: how many frames of the initial sync.
        """
        with self._lock:
            # Without references: the agent may have ended the connection because it could not follow one.
            left = {number: frames for number, frames in self._unacked.items() if number > committed}
            self._unacked = {number: frames.without_references() for number, frames in left.items()}
            again = [] if committed else self._copy_since(taken)
            self._stream, self.term = stream, term
            for frame in again:
                self._send_frames(0, [frame])
            for number in sorted(self._unacked):
                self._send_frames(number, self._unacked[number].outgoing())

    def attach_apart(self, stream: FrameStream, term: int, committed: int, taken: int) -> None:
        """`attach` in a thread of its own, after an earlier one: whoever listens on `stream` must not wait for what is
        sent again, or nobody would notice that this connection is lost, too. BadFrame for a count that cannot be."""
        if not committed:
            self._copy_since(taken)
        earlier = self._attaching

        def attach() -> None:
            if earlier is not None:
                earlier.join()
            self.attach(stream, term, committed, taken)

        self._attaching = apart(attach, name="attach")

    def detach(self) -> None:
        """The connection is dead: whoever sends on it is freed, and frames wait."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def ship(self, frames: EpochFrames) -> None:
        """Send an epoch, or keep it for the next connection."""
        with self._lock:
            self._unacked[frames.epoch] = frames
            self._send_frames(frames.epoch, frames.outgoing())

    def acked(self, epoch: int) -> None:
        """The agent holds everything up to `epoch`: forget it."""
        for number in [number for number in list(self._unacked) if number <= epoch]:
            self._unacked.pop(number, None)

    def seed(self, frames: list[CopyFrame]) -> None:
        """Send parts of the initial sync (epoch 0), waiting for room. PeerUnreachable once the session is over."""
        self._keep_rate(sum(len(payload) for _, payload in frames))
        for frame in frames:
            self._await_copy(lambda: not self._copy.full)
            with self._lock:
                with self._copy_moved:
                    self._copy.add(frame)
                self._send_frames(0, [frame])

    def seed_taken(self, count: int) -> None:
        """The agent has applied so many frames of the initial sync. BadFrame when that cannot be."""
        with self._copy_moved:
            self._copy.taken(count)
            self._copy_moved.notify_all()

    def await_seeded(self) -> None:
        """Until the agent has applied all of the initial sync. PeerUnreachable once the session is over."""
        self._await_copy(lambda: not self._copy.waiting)

    def _copy_since(self, taken: int) -> list[CopyFrame]:
        with self._copy_moved:
            again = self._copy.since(taken)
            self._copy_moved.notify_all()
            return again

    def _await_copy(self, ready: Callable[[], bool]) -> None:
        with self._copy_moved:
            while not self._copy_moved.wait_for(ready, LOOK_S) or self._over.is_set():
                if self._over.is_set():
                    raise PeerUnreachable("the initial sync was ended")

    def _keep_rate(self, size: int) -> None:
        """Wait so that the initial sync keeps to its rate; what was not used is not saved up."""
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

    def _send_frames(self, epoch: int, frames: Iterable[CopyFrame]) -> None:
        stream = self._stream  # `detach` may take it away meanwhile: that is what frees a blocked send
        if stream is None:
            return
        try:
            stream.send_many((kind, self.term, epoch, payload) for kind, payload in frames)
        except PeerUnreachable:
            stream.close()
