# SPDX-License-Identifier: Apache-2.0
"""Frames held per epoch: the tap gate's queue, without any I/O.

Owns every frame between its arrival and its sending. Invariant: a frame reaches `sending` only by `release` of
its epoch or a later one, or by `open_all`; order never changes.

    passing ──hold()──▶ holding ──open_all()──▶ passing
"""

from __future__ import annotations

from collections import deque


class EpochOrder(ValueError):
    """A mark whose epoch is not above the last one."""


class HoldQueue:
    """At most `max_bytes` of frames, the ones on their way out included; more are dropped, newest first."""

    def __init__(self, max_bytes: int) -> None:
        self.sending: deque[bytes] = deque()
        self.held_bytes = 0
        self.dropped = 0
        self.released = 0
        self._max_bytes = max_bytes
        self._holding = False
        self._open: list[bytes] = []
        self._marked: deque[tuple[int, list[bytes]]] = deque()
        self._last_epoch = -1

    @property
    def held_frames(self) -> int:
        """Frames here, the ones on their way out included."""
        return len(self._open) + sum(len(frames) for _epoch, frames in self._marked) + len(self.sending)

    def hold(self) -> None:
        """From now on frames wait for their epoch. If they did not before, a new count of epochs begins."""
        if not self._holding:
            self._holding = True
            self._last_epoch = -1

    def accept(self, frames: list[bytes]) -> None:
        """Take frames in the order they came."""
        size = sum(map(len, frames))
        if self.held_bytes + size > self._max_bytes:
            frames = self._what_fits(frames)
            size = sum(map(len, frames))
        self.held_bytes += size
        (self._open if self._holding else self.sending).extend(frames)

    def _what_fits(self, frames: list[bytes]) -> list[bytes]:
        space = self._max_bytes - self.held_bytes
        fitting = []
        for frame in frames:
            # Stop at the first that does not fit: a later, smaller one must not overtake it.
            if len(frame) > space:
                break
            space -= len(frame)
            fitting.append(frame)
        self.dropped += len(frames) - len(fitting)
        return fitting

    def mark(self, epoch: int) -> None:
        """What came so far and is not marked belongs to `epoch`."""
        if epoch <= self._last_epoch:
            raise EpochOrder(f"mark of epoch {epoch} after epoch {self._last_epoch}")
        self._last_epoch = epoch
        if self._open:
            self._marked.append((epoch, self._open))
            self._open = []

    def release(self, epoch: int) -> None:
        """Epochs up to `epoch` may be sent."""
        while self._marked and self._marked[0][0] <= epoch:
            self.sending.extend(self._marked.popleft()[1])

    def open_all(self) -> None:
        """Everything may be sent, and what comes too."""
        for _epoch, frames in self._marked:
            self.sending.extend(frames)
        self.sending.extend(self._open)
        self._marked.clear()
        self._open = []
        self._holding = False

    def drop_held(self) -> None:
        """Forget everything that has not been sent; from now on hold, with a new count of epochs."""
        self.dropped += self.held_frames
        self.sending.clear()
        self._marked.clear()
        self._open = []
        self.held_bytes = 0
        self._holding = True
        self._last_epoch = -1

    def sent(self, frame: bytes, ok: bool) -> None:
        """`frame`, taken from the left of `sending`, is gone."""
        self.held_bytes -= len(frame)
        if ok:
            self.released += 1
        else:
            self.dropped += 1
