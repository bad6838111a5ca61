# SPDX-License-Identifier: Apache-2.0
"""The initial sync: disks through their mirrors, memory in rounds (memory_copy.py), both while the VM runs.

What is sent here is epoch 0: the agent applies it as it comes, and can promote nothing before epoch 1 made the
replica consistent. Of the disks, only what differs from the images that the agent has goes out (disk/resync_filter.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from remusdb.capture.cut import DirtyBlock
from remusdb.core.messages import Base, Disk, Welcome
from remusdb.core.wire import FrameType
from remusdb.core.writes import encode_writes
from remusdb.disk.mirror import Mirror
from remusdb.disk.resync_filter import ResyncFilters
from remusdb.disk.writelog import WriteLog
from remusdb.errors import BadFrame, DiskError
from remusdb.threads import start
from remusdb.vm.domain import Domain
from remusdb.worker.brake import Brake, BrakeThread
from remusdb.worker.disk_reads import DiskReads
from remusdb.worker.encoder import Encoder
from remusdb.worker.memory_copy import MemoryCopy, Progress
from remusdb.worker.metrics import Metrics
from remusdb.worker.outbox import Outbox
from remusdb.worker.resources import Resources

PUMP_S = 0.02


class InitialSync:
    """Of one session. The peer's thread brings what the agent has already, protect() does the rest."""

    def __init__(
        self, outbox: Outbox, metrics: Metrics, progress: Progress, failed: Callable[[Exception], None]
    ) -> None:
        """`failed` is told, from any thread, why it cannot go on."""
        self._outbox = outbox
        self._metrics = metrics
        self._progress = progress
        self._failed = failed
        self._bases: ResyncFilters | None = None  # while it runs

    @property
    def told(self) -> list[int]:
        """How many hashes of each disk the agent told so far."""
        return self._bases.told if self._bases is not None else []

    def expect(self, welcome: Welcome, disks: list[Disk]) -> None:
        """The agent tells what it has of these disks."""
        self._bases = ResyncFilters(welcome, [disk.size for disk in disks])

    def take(self, base: Base) -> None:
        """Hashes of an older image that the agent has. BadFrame when nobody asked."""
        bases = self._bases
        if bases is None:
            raise BadFrame("hashes of disks came when nobody asked")
        bases.take(base)

    def run(self, resources: Resources, over: threading.Event, silence_ms: Callable[[], float | None]) -> None:
        """Copy everything but for little that goes into epoch 1; the agent has all of it then."""
        bases = self._bases
        assert bases is not None
        bases.wait(over, self._progress)
        resources.build()
        resources.watch_devices(self._failed)
        pump = DiskPump(resources.logs, self._outbox, bases, resources.reads)
        brake = BrakeThread(Brake(resources.logs, resources.copy_speed), silence_ms, self._failed)
        start_mirrors(resources.domain, resources.logs, resources.mirrors)
        start(pump)
        start(brake)
        try:
            wait_for_disks(resources.domain, resources.mirrors, pump, self._progress)
            copy_memory(resources, self._outbox, self._progress)
        finally:
            brake.finish()
            pump.finish()
        self._outbox.await_seeded()  # before output is held for the first epoch: the agent is there, and has the rest
        self._bases = None  # its tables may take some memory
        self._metrics.disks(pump.sent_bytes, bases.same_bytes)


class DiskPump(threading.Thread):
    """Sends the disks' write logs as epoch 0 until it is stopped; the rest then belongs to epoch 1."""

    def __init__(
        self, logs: list[WriteLog], outbox: Outbox, bases: ResyncFilters, reads: DiskReads | None = None
    ) -> None:
        """`reads` is told what came in, as it is without what the agent had already."""
        super().__init__(name="disk-pump", daemon=True)
        self._logs = logs
        self._outbox = outbox
        self._bases = bases
        self._reads = reads
        self.sent_bytes = 0  # payload
        self._quit = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        """Move what came in until stopped."""
        try:
            while not self._quit.wait(PUMP_S):
                for log in self._logs:
                    self._move(log)
        except Exception as exc:  # task boundary: the session asks for it
            self.error = exc

    def finish(self) -> None:
        """Stop, and raise what went wrong; else the agent's images are now what the logs made so far."""
        self._quit.set()
        self.join()
        if self.error is not None:
            raise self.error
        self._send(self._bases.rest())

    def _move(self, log: WriteLog) -> None:
        if log.failed is not None:
            raise DiskError(f"disk {log.disk}: {log.failed}")
        raw = log.take(log.position(), 10.0)
        if self._reads is not None:
            self._reads.note(raw, 0)
        self._send(self._bases.reduce(log.disk, raw))

    def _send(self, raw: bytes) -> None:
        payloads = encode_writes(raw)
        if payloads:
            self.sent_bytes += sum(len(payload) for payload in payloads)
            self._outbox.seed([(FrameType.WRITES, payload) for payload in payloads])


def wait_for_disks(domain: Domain, mirrors: list[Mirror], pump: DiskPump, progress: Progress) -> None:
    """Until every mirror is ready: from then on each guest write reaches its log before the guest sees it done."""
    waiting = list(mirrors)
    while waiting:
        if pump.error is not None:
            raise pump.error
        waiting = [mirror for mirror in waiting if not domain.calls.call("block job", mirror.ready)]
        totals = [domain.calls.call("block job", mirror.progress) for mirror in mirrors]
        progress("copy disks", sum(done for done, _ in totals), sum(total for _, total in totals), "bytes")
        time.sleep(0.1 if waiting else 0)


def copy_memory(resources: Resources, outbox: Outbox, progress: Progress) -> None:
    """All of memory, but for little that goes into epoch 1."""
    MemoryCopy(resources.capture, resources.logs, lambda dirty: _send(dirty, resources.encoder, outbox), progress).run()


def _send(dirty: DirtyBlock, encoder: Encoder, outbox: Outbox) -> None:
    """Always as delta: zero pages of a fresh replica cost nothing, whatever the epochs' encoding."""
    outbox.seed([(FrameType.PAGES, payload) for payload in encoder.pages(dirty, "delta")])


def start_mirrors(domain: Domain, logs: list[WriteLog], mirrors: list[Mirror]) -> None:
    """Begin the copy of every disk."""
    for log, mirror in zip(logs, mirrors, strict=True):
        log.start()
        domain.calls.call(f"block copy of {mirror.target}", mirror.start)
