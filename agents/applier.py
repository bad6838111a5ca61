# SPDX-License-Identifier: Apache-2.0
"""Moves a replica from one committed epoch to the next: disks, memory, device state.

Owns the queue of committed epochs that are not yet applied. Invariant: between two epochs the replica is exactly
one epoch; a failure in the middle of one makes it useless, and is told at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from remusdb.core.devices import decode_devices
from remusdb.core.pages import decode_pages
from remusdb.core.wire import Frame, FrameType
from remusdb.core.writes import decode_writes
from remusdb_agents.images import ReplicaImages
from remusdb_agents.inbox import WholeEpoch
from remusdb_agents.standby_vm import StandbyVm

BACKLOG_EPOCHS = 4  # so many epochs may wait to be applied before acknowledgements wait too


class Applier:
    """One replica's memory, disks and device state, and the thread that moves them."""

    def __init__(
        self,
        standby: StandbyVm,
        images: ReplicaImages,
        moved: Callable[[WholeEpoch], None],
        broken: Callable[[Exception], None],
    ) -> None:
        self._standby = standby
        self._images = images
        self._moved = moved
        self._broken = broken
        self._epochs: deque[WholeEpoch] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.devices = b""
        self._thread = threading.Thread(target=self._run, name="apply", daemon=True)
        self._thread.start()

    @property
    def crowded(self) -> bool:
        """Whether acknowledgements should wait: the primary then makes longer epochs."""
        return len(self._epochs) > BACKLOG_EPOCHS

    def put(self, epoch: WholeEpoch) -> None:
        """A committed epoch, to be applied after those before it."""
        with self._changed:
            self._epochs.append(epoch)
            self._changed.notify_all()

    def apply(self, frame: Frame) -> None:
        """Apply one bulk frame now (the initial copy is applied as it comes, by the receiving thread)."""
        if frame.type is FrameType.PAGES:
            self._standby.apply(decode_pages(frame.payload))
        elif frame.type is FrameType.WRITES:
            self._images.apply(decode_writes(frame.payload))
        elif frame.type is FrameType.DEVICES:
            self.devices = decode_devices(frame.payload, self.devices)

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until every epoch is applied (or applying failed)."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._epochs or self._closed, timeout_s)

    def close(self) -> None:
        """Stop the thread; what waits is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(5)

    def _run(self) -> None:
        try:
            while (epoch := self._next()) is not None:
                for frame in epoch.frames:
                    self.apply(frame)
                self._moved(epoch)
                with self._changed:
                    self._epochs.popleft()
                    self._changed.notify_all()
        except Exception as exc:  # task boundary: whatever it was, this replica is torn
            with self._changed:
                wanted, self._closed = not self._closed, True
                self._changed.notify_all()
            if wanted:
                self._broken(exc)

    def _next(self) -> WholeEpoch | None:
        with self._changed:
            self._changed.wait_for(lambda: self._epochs or self._closed)
            return None if self._closed else self._epochs[0]
