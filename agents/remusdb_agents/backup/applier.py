# SPDX-License-Identifier: Apache-2.0
"""Moves a replica from one committed epoch to the next: disks, memory, device state.

Owns the queue of committed epochs that are not yet applied. Invariant: between two epochs the replica is exactly
one epoch; a failure in the middle of one makes it useless, and is told at once.

    applying ─freeze▶ frozen ─thaw▶ catching up ─few epochs wait▶ applying
       └──────────────── a takeover or the session's end breaks a freeze, and none begins after it
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

from remusdb.core.devices import decode_devices
from remusdb.core.pages import decode_pages
from remusdb.core.wire import Frame, FrameType
from remusdb.core.writes import decode_writes
from remusdb.deadline import Deadline
from remusdb.errors import RefusedForSafety
from remusdb.threads import start
from remusdb_agents.backup.catch_up import CatchUp
from remusdb_agents.backup.disks.images import ReplicaImages
from remusdb_agents.backup.inbox import WholeEpoch
from remusdb_agents.backup.standby.qemu import StandbyQemu

MOST_BYTES = 2 << 30  # limits.epoch_max_bytes, where it is not given
BACKLOG_EPOCHS = 4  # so many epochs may wait to be applied before acknowledgements wait too
LOOK_S = 0.5
FREEZE_S = 30.0  # how long a freeze waits for the epoch that is being applied


class Frozen:
    """A replica that stands still at one epoch, until it is thawed or the freeze is broken."""

    def __init__(self, epoch: int, devices: bytes, catch_up: CatchUp, waiting: Callable[[], int]) -> None:
        self.epoch = epoch
        self.devices = devices
        self.catch_up = catch_up
        self._waiting = waiting
        self._why = ""
        self._broken = threading.Event()
        self._then: Callable[[], None] = _nothing

    @property
    def waiting(self) -> int:
        """Committed epochs that wait to be applied."""
        return self._waiting()

    def require(self, within_s: float = 0.0) -> None:
        """RefusedForSafety when the freeze was broken, or is within so long: the replica moves on."""
        if self._broken.wait(within_s):
            raise RefusedForSafety(self._why)

    def on_broken(self, then: Callable[[], None]) -> None:
        """Have `then` called, at once, by whoever breaks the freeze: it must not wait for anything."""
        self._then = then
        self.require()

    def broken_by(self, why: str) -> None:
        """Tell whoever froze the replica that it moves on."""
        self._why = why
        self._broken.set()
        self._then()


class Applier:
    """One replica's memory, disks and device state, and the thread that moves them."""

    def __init__(
        self,
        standby: StandbyQemu,
        images: ReplicaImages,
        moved: Callable[[WholeEpoch], None],
        broken: Callable[[Exception], None],
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """`moved` and `broken` are told each epoch that was applied, and the failure; `most_bytes`: what may wait."""
        self._most_bytes = most_bytes
        self._standby = standby
        self._images = images
        self._moved = moved
        self._broken = broken
        self._epochs: deque[WholeEpoch] = deque()
        self._bytes = 0  # of the epochs in the queue
        self._changed = threading.Condition()
        self._closed = False
        self._applying = False
        self._frozen: Frozen | None = None
        self._over = ""  # why nothing may be frozen any more
        self._backlog_max_bytes = 0  # what a freeze, and the catching up after it, may keep waiting
        self._catching_up = False
        self.epoch = 0
        self.devices = b""
        self.catch_up = CatchUp()  # of `devices`
        self.open_flows: list[bytes] = []  # of the last epoch that was applied, by interface
        self._thread = threading.Thread(target=self._run, name="apply", daemon=True)
        start(self._thread)

    @property
    def crowded(self) -> bool:
        """Whether acknowledgements should wait: the primary then makes longer epochs.

        What waits because of a freeze is bounded by its bytes instead, so that the primary does not feel it.
        """
        return self._crowded(len(self._epochs), self._bytes)

    def crowded_with(self, epoch: WholeEpoch) -> bool:
        """What `crowded` will say once this one waits, too."""
        return self._crowded(len(self._epochs) + 1, self._bytes + epoch.cost_bytes)

    def _crowded(self, epochs: int, size: int) -> bool:
        if self._frozen is not None:
            return size > self._backlog_max_bytes
        many = epochs > BACKLOG_EPOCHS or size > self._most_bytes
        return many and (not self._catching_up or size > self._backlog_max_bytes)

    @property
    def over(self) -> str:
        """Why nothing can be frozen any more; empty while it can."""
        return self._over

    def put(self, epoch: WholeEpoch) -> None:
        """A committed epoch, to be applied after those before it."""
        with self._changed:
            self._epochs.append(epoch)
            self._bytes += epoch.cost_bytes
            self._changed.notify_all()

    def await_room(self, wanted: Callable[[], bool]) -> None:
        """Before more is read of the primary: until what waits is within bounds, or nobody wants to read any more.

        A primary that waits for its acknowledgements never gets here; who does not is slowed by TCP, and takes no
        memory. `wanted` is asked again and again.
        """
        with self._changed:
            while self._full and not self._closed and wanted():
                self._changed.wait(LOOK_S)

    @property
    def _full(self) -> bool:
        return self._bytes > self._most_bytes + (self._backlog_max_bytes if self._frozen or self._catching_up else 0)

    def apply(self, frame: Frame) -> None:
        """Apply one bulk frame now (the initial sync is applied as it comes, by the receiving thread)."""
        if frame.type is FrameType.PAGES:
            self._standby.apply(decode_pages(frame.payload))
        elif frame.type is FrameType.WRITES:
            self._images.apply(decode_writes(frame.payload))
        elif frame.type is FrameType.DEVICES:
            self.devices = decode_devices(frame.payload, self.devices)

    @contextlib.contextmanager
    def freeze(self, backlog_max_bytes: int, within_s: float = FREEZE_S) -> Iterator[Frozen]:
        """Stand still between two epochs; meanwhile epochs wait, up to so many bytes before `crowded` says so.

        RefusedForSafety when the replica is needed, or does not stand still within so long. One freeze at a time.
        """
        frozen = self._freeze(backlog_max_bytes, within_s)
        try:
            yield frozen
        finally:
            with self._changed:
                if self._frozen is frozen:
                    self._thaw()

    def _freeze(self, backlog_max_bytes: int, within_s: float) -> Frozen:
        deadline = Deadline.after(within_s)
        with self._changed:
            self._changed.wait_for(lambda: self._over or self.epoch, within_s)
            if self._over or not self.epoch or self._frozen is not None:
                raise RefusedForSafety(self._over or "the replica cannot be frozen: it is being rehearsed or copied")
            frozen = self._frozen = Frozen(0, b"", CatchUp(), lambda: len(self._epochs))
            self._backlog_max_bytes = backlog_max_bytes
            self._changed.wait_for(lambda: self._over or not self._applying, deadline.left())
            if self._applying and not self._over:
                self._thaw()
                raise RefusedForSafety(f"the replica did not come to the end of an epoch within {within_s:g} s")
            frozen.require()
            frozen.epoch, frozen.devices, frozen.catch_up = self.epoch, self.devices, self.catch_up
            return frozen

    def _thaw(self) -> None:
        self._frozen, self._catching_up = None, True
        self._changed.notify_all()

    def _end_freezes(self, why: str) -> None:
        self._over = self._over or why
        if self._frozen is not None:
            self._frozen.broken_by(why)
            self._thaw()

    def wait_empty(self, timeout_s: float) -> bool:
        """For a takeover, so it comes first: a freeze is broken. Until every epoch is applied, or applying failed."""
        with self._changed:
            self._end_freezes("this host takes the VM over")
            return self._changed.wait_for(lambda: not self._epochs or self._closed, timeout_s)

    def close(self) -> None:
        """Stop the thread; what waits is dropped."""
        with self._changed:
            self._closed = True
            self._epochs.clear()
            self._end_freezes("the replica was given up")
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(5)

    def _run(self) -> None:
        try:
            while (epoch := self._next()) is not None:
                for frame in epoch.frames:
                    if self._closed:
                        return
                    self.apply(frame)
                self.catch_up = CatchUp(self.catch_up.earlier or self.devices, epoch.stopped_at_ns)
                self.open_flows = epoch.open_flows
                self._moved(epoch)
                with self._changed:
                    if self._closed:
                        return
                    self._epochs.popleft()
                    self._bytes -= epoch.cost_bytes
                    self._applying, self.epoch = False, epoch.epoch
                    self._catching_up = self._catching_up and len(self._epochs) > BACKLOG_EPOCHS
                    self._changed.notify_all()
        except Exception as exc:  # task boundary: whatever it was, this replica is torn
            with self._changed:
                wanted, self._closed = not self._closed, True
                self._end_freezes("the replica is broken")
                self._changed.notify_all()
            if wanted:
                self._broken(exc)

    def _next(self) -> WholeEpoch | None:
        with self._changed:
            self._changed.wait_for(lambda: (self._epochs and self._frozen is None) or self._closed)
            self._applying = not self._closed
            return None if self._closed else self._epochs[0]


def _nothing() -> None:
    return
