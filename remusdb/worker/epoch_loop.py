# SPDX-License-Identifier: Apache-2.0
"""The epoch loop: cut when it is due, encode and ship while the VM runs on.

Owns two threads, `cut` and `ship`, and the queue between them. Invariant: epochs are cut, encoded and shipped in
order, each with the disk writes and the gates' marks of its own instant. When the window is full, the next epoch
waits and grows; nothing queues up.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

from remusdb.capture.cut import Cut
from remusdb.core.cadence import Why
from remusdb.core.lease import lease_until
from remusdb.core.pipeline import Pipeline
from remusdb.disk.mirror import unsynced
from remusdb.errors import DiskError, GateError, VmError
from remusdb.reasons import Code, Reason
from remusdb.threads import spawn
from remusdb.vm.monitor import objects_in
from remusdb.worker.encoder import EpochFrames
from remusdb.worker.epoch_timer import EpochTimer, pace_of
from remusdb.worker.hurry import hurry
from remusdb.worker.metrics import Metrics
from remusdb.worker.outbox import Outbox
from remusdb.worker.resources import Resources

log = logging.getLogger(__name__)

WRITES_S = 5.0
JOBS = "query-block-jobs"
LEND_S = 0.05
CALLED_OFF_LOOK_S = 0.005  # after the last cut: whether the switchover was called off

# Number, what was cut, positions of the disks' write logs, `stays`, the open flows of each interface.
CutEpoch = tuple[int, Cut, list[int], bool, list[bytes]]


class _Turn:
    """A turn at the gates, held for a while and lent out in between; not waited for once all is over."""

    def __init__(self, turn: threading.RLock, over: threading.Event) -> None:
        self._turn = turn
        self._over = over
        self._held = False

    def __enter__(self) -> _Turn:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.lend()

    def take(self) -> None:
        """Have it, if it was lent out."""
        while not self._held:
            self._held = self._turn.acquire(timeout=LEND_S)
            if not self._held and self._over.is_set():
                raise VmError(
                    "the cut was called off"
                )  # whoever takes the resources down has it, and waits for the cut

    def lend(self) -> None:
        """Let others have it, if it is held."""
        if self._held:
            self._held = False
            self._turn.release()


class EpochLoop:
    """Epochs of one session, from `start` until `stop` or a failure, which is told once."""

    def __init__(
        self,
        pipeline: Pipeline,
        outbox: Outbox,
        metrics: Metrics,
        lock: threading.Condition,
        failed: Callable[[Exception], None],
    ) -> None:
        """`lock` guards the pipeline and is notified when it moves."""
        self._pipeline = pipeline
        self._outbox = outbox
        self._metrics = metrics
        self._lock = lock
        self._failed = failed
        self._cuts: queue.Queue[CutEpoch | None] = queue.Queue()
        self._over = threading.Event()
        self._last: Future[int] | None = None
        self._cutting: threading.Thread | None = None
        self._timer: EpochTimer | None = None
        self._commit_protected = False
        self._cut_at_s: dict[int, float] = {}  # of the epochs in flight, by the monotonic clock
        self._nameless = 0  # the last epoch that named no flows, though some may have been open
        self.silence_s = 0.0  # the agent's limit
        self.stays = False  # the VM stands still, and is to do so after a takeover
        self.addresses: tuple[str, ...] = ()  # the guest's, for the agent's announcement

    def start(self, resources: Resources) -> None:
        """Begin with the next epoch at once. GateError when the VM's taps cannot be listened to."""
        self._resources = resources
        self._commit_protected = resources.release is not None
        taps = [] if self._commit_protected else [nic.tap for nic in resources.domain.nics]
        pace = pace_of(resources.spec.protection)
        self._timer = timer = EpochTimer(pace, taps, resources.domain.pid, resources.bell_fd)
        self._cutting = spawn(self._guarded, lambda: self._cut_all(timer), name="cut")
        spawn(self._guarded, self._ship_all, name="ship")

    def stop(self, wait_s: float = 0.0) -> None:
        """Cut and ship no more. Waits so long for a cut that is under way."""
        self._over.set()
        self._cuts.put(None)
        with self._lock:
            self._lock.notify_all()
        self.wake()
        if self._cutting is not None and wait_s:
            self._cutting.join(wait_s)

    def cut_last(self, timeout_s: float) -> int:
        """Stop the VM for good, cut one more epoch, and no other before `go_on`; that epoch's number."""
        last: Future[int] = Future()
        self._last = last
        self.wake()
        try:
            return last.result(timeout_s)
        except TimeoutError as exc:
            raise VmError(f"the VM was not stopped and cut within {timeout_s:g} s") from exc

    def go_on(self) -> None:
        """After `cut_last`: the VM runs again, cut as before."""
        self._last = None

    def early_until(self, epoch: int) -> float:
        """Now that this epoch is committed, frames may go early until then, by the monotonic clock (core/lease.py).

        Not before an epoch is committed that is newer than the last one before a switchover: that one names no flows.
        """
        cut_at_s = [self._cut_at_s.pop(number) for number in sorted(self._cut_at_s) if number <= epoch]
        if not cut_at_s or not self._commit_protected or epoch <= self._nameless:
            return 0.0
        return lease_until(cut_at_s[-1], self.silence_s)

    def wake(self) -> None:
        """An epoch was committed: the next one may be due. Any thread may say so."""
        if self._timer is not None:
            self._timer.wake()

    def _guarded(self, work: Callable[[], None]) -> None:
        """Task boundary: a failure of cutting or shipping ends protection, visibly."""
        try:
            work()
        except Exception as exc:
            if not self._over.is_set():
                log.exception("%s failed", work.__name__)
                devices = self._resources.devices
                self._failed(devices.explained(exc) if devices and isinstance(exc, GateError) else exc)

    def _cut_all(self, timer: EpochTimer) -> None:
        hurry()
        with contextlib.closing(timer):
            while not self._over.is_set():
                why = timer.wait(self._all_committed, self._pressed, self._called)
                epoch = self._wait_for_room()
                last = self._last
                if epoch is not None and last is not None:
                    self._stop_and_cut(timer, epoch, last)
                elif epoch is not None and why is not None:
                    self._cut(timer, epoch, self.stays, why)

    def _all_committed(self) -> bool:
        return self._pipeline.in_flight == 0

    def _pressed(self) -> bool:
        return any(writes.pressed for writes in self._resources.logs)

    def _called(self) -> bool:
        return self._over.is_set() or self._last is not None

    def _wait_for_room(self) -> int | None:
        """The epoch to cut now, once the window has room for it."""
        with self._lock:
            self._lock.wait_for(lambda: self._over.is_set() or self._pipeline.next_epoch() is not None, 0.5)
            return None if self._over.is_set() else self._pipeline.next_epoch()

    def _stop_and_cut(self, timer: EpochTimer, epoch: int, last: Future[int]) -> None:
        """The last epoch before a switchover; then nothing more is cut until it is called off."""
        stays = self.stays  # as it was before it is stopped for this
        try:
            with self._resources.clock.halting():
                self._resources.domain.qmp("stop")
            self._cut(timer, epoch, stays, Why.LAST)
        except Exception as exc:
            last.set_exception(exc)
            raise
        last.set_result(epoch)
        while self._last is last and not self._over.wait(CALLED_OFF_LOOK_S):
            pass
        self._resources.clock.held_until_now()

    def _cut(self, timer: EpochTimer, epoch: int, stays: bool, why: Why) -> None:
        resources = self._resources
        positions: list[int] = []
        with ExitStack() as stack:
            # Before the VM stops, so that it does not stand still for whoever has the lock.
            gates = stack.enter_context(_Turn(resources.gates.turn, self._over))
            for writes in resources.logs:
                stack.enter_context(writes.cutting())

            def at_stop() -> None:
                gates.take()
                timer.at_stop()  # first: a frame that comes here meanwhile is of the next epoch, and rings
                resources.gates.mark_begin(epoch)
                positions.extend(writes.position() for writes in resources.logs)

            def waiting(seconds: float) -> None:
                gates.lend()  # what was committed before must still go out
                who = "libvirt" if resources.domain.monitor == "libvirt" else "QEMU"
                self._metrics.wait(Reason.of(Code.CUT_WAITS, who=who, seconds=f"{seconds:.1f}"))

            def marked() -> None:
                resources.gates.mark_wait()
                timer.marked()

            cut = resources.capture.cut(at_stop, marked, waiting)
            open_flows = self._open_flows(epoch, why) if self._commit_protected else []
        if cut.stopped_at_ns is not None:
            self._cut_at_s[epoch] = cut.stopped_at_ns / 1e9
        self._metrics.wait(None)
        with self._lock:
            self._pipeline.cut(epoch)
        timer.cut()
        self._metrics.cut(epoch, cut.pages, why, cut.stages_ms)
        self._cuts.put((epoch, cut, positions, stays, open_flows))

    def _open_flows(self, epoch: int, why: Why) -> list[bytes]:
        """Those that a takeover at this epoch must break: none after the last one before a switchover, since nothing
        goes early from its cut on, and the VM stands still."""
        if why is not Why.LAST:
            return self._resources.gates.open_flows()
        self._nameless = epoch
        self._resources.gates.release(0)  # which takes the lease away
        return []

    def _ship_all(self) -> None:
        while (item := self._cuts.get()) is not None and not self._over.is_set():
            frames = self._encode(*item)
            self._metrics.shipped(frames.payload_bytes, frames.cached, frames.referred)
            self._metrics.reached(frames.epoch, "encode")
            self._outbox.ship(frames)
            self._metrics.reached(frames.epoch, "send")

    def _encode(self, epoch: int, cut: Cut, positions: list[int], stays: bool, open_flows: list[bytes]) -> EpochFrames:
        resources = self._resources
        asked = resources.domain.qmp_begun(JOBS) if resources.mirrors else None  # answered while the rest is done
        writes = [log.take(upto, WRITES_S) for log, upto in zip(resources.logs, positions, strict=True)]
        if resources.devices is not None:
            resources.devices.require_same(cut.devices)
        frames = resources.encoder.epoch(epoch, cut, writes, list(self.addresses), stays, open_flows)
        resources.capture.give_back(cut)
        if asked is not None:
            self._require_mirrors(asked)
        return frames

    def _require_mirrors(self, asked: Future[Any]) -> None:
        """A mirror that works after the cut worked at the cut: its job does not come back once it failed."""
        mirrors = self._resources.mirrors
        jobs = self._resources.domain.qmp_patiently(JOBS, asked, self._resources.patience_s, self._over.is_set)
        gone = unsynced(objects_in(JOBS, jobs), [mirror.target for mirror in mirrors])
        if gone:
            log_file = f"/var/log/libvirt/qemu/{self._resources.domain.name}.log"
            raise DiskError(f"the mirror of disk {', '.join(gone)} ended", hint=f"see what QEMU said: {log_file}")
