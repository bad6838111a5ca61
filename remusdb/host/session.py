# SPDX-License-Identifier: Apache-2.0
"""One VM's protection on its primary host.

Owns the parts (capture, disks, gates), the pipeline and three threads: `epochs` cuts, `ship` encodes and sends,
`peer` hears the agent. Invariant: a gate is told to release only what the pipeline, under `lock`, allows; once the
session is fenced or lost, nothing but `unprotect` or a resumed session opens it again.

    protect() ─▶ seeding ─▶ protected ◀─▶ held (agent lost)
                    │           ├─▶ fenced (the agent took over: output stays shut)
                    └───────────┴─▶ failed, unprotected (the agent renounced: VM and network as found)
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from remusdb import __version__
from remusdb.core.messages import Disk, Hello, Notice, RamBlock, Welcome, pack
from remusdb.core.pipeline import Pipeline, PrimaryState
from remusdb.core.wire import FrameType
from remusdb.disk.mirror import query_block_jobs, unsynced
from remusdb.errors import DiskError, Fenced, PeerRefused, PeerUnreachable, RefusedForSafety
from remusdb.host.encoder import EpochFrames
from remusdb.host.figures import Figures
from remusdb.host.order import Order
from remusdb.host.outbox import Outbox
from remusdb.host.parts import Parts
from remusdb.host.peer import Peer, greet
from remusdb.host.seed import DiskPump, Progress, copy_memory, start_mirrors, wait_for_disks
from remusdb.net.gate import GateFigures
from remusdb.transport.stream import FrameStream
from remusdb.vm.capture import Cut

log = logging.getLogger(__name__)

FIRST_ACK_S = 60.0
RENOUNCE_S = 5.0
WRITES_S = 5.0

Save = Callable[[dict[str, Any]], None]
CutEpoch = tuple[int, Cut, list[int], list[str]]  # epoch, cut, disk positions, the guest's addresses


class Session:
    """Protection of one VM, from the initial copy to its end."""

    def __init__(self, order: Order, save: Save, progress: Progress) -> None:
        self._order = order
        self._save = save
        self._progress = progress
        self._parts: Parts | None = None
        self._pipeline = Pipeline(order.protection.window)
        self._pipeline.term = int((order.previous or {}).get("term", 0))
        self._outbox = Outbox()
        self._peer = Peer(order, self._hello, self)
        self._lock = threading.Condition()
        self._gate_lock = threading.Lock()
        self._cuts: queue.Queue[CutEpoch | None] = queue.Queue()
        self._over = threading.Event()
        self._renounced = threading.Event()
        self._leaving = False
        self._gated = False
        self._failure: Exception | None = None
        self.figures = Figures()
        self.ended = threading.Event()

    # --- orders ---

    def protect(self) -> None:
        """Copy everything, cut epoch 1, and return once the agent holds it. On any error the VM is as it was."""
        try:
            self._protect()
        except BaseException as exc:
            cause = self._failure or exc
            self.figures.set("failed", str(cause))
            self._abandon()
            raise cause from exc

    def unprotect(self, peer_is_dead: bool) -> None:
        """End protection in good order: the agent gives its standby up first, then output flows freely."""
        if self._pipeline.state is PrimaryState.FENCED:
            raise Fenced("the other host runs this VM now; its output stays shut here", hint="destroy the VM here")
        self._leaving = True
        self._outbox.say(FrameType.BYE, pack(Notice("unprotect was asked")))
        if not self._renounced.wait(RENOUNCE_S) and not peer_is_dead:
            raise RefusedForSafety(
                f"agent {self._order.peer.name} does not answer: it may have taken over or may still do so",
                hint="stop the agent's host first, then say --peer-is-dead; or try again when it is back",
            )
        self._finish("unprotected", "unprotect was asked")

    def status(self) -> dict[str, Any]:
        """VmStatus, see docs/architecture.md."""
        pipeline, order, parts = self._pipeline, self._order, self._parts
        held = self._gate_figures() if self._gated and not self.ended.is_set() else None
        return {
            "vm": order.vm,
            "role": "primary",
            **self.figures.to_dict(),
            "peer": order.peer.name,
            "term": pipeline.term,
            "epoch": pipeline.captured,
            "committed": pipeline.committed,
            "epoch_ms": order.protection.epoch_ms,
            "window": order.protection.window,
            "in_flight": pipeline.in_flight,
            "held_frames": held.held_frames if held else 0,
            "held_bytes": held.held_bytes if held else 0,
            "dropped_frames": held.dropped_frames if held else 0,
            "monitor": "libvirt",
            "gate": parts.gate_kind if parts else order.protection.gate,
            "encoding": order.protection.encoding,
            "accel": parts.domain.accel if parts else None,
        }

    # --- the initial copy ---

    def _protect(self) -> None:
        self._parts = parts = Parts(self._order)
        greeting = greet(self._order, self._hello(False))
        self._save({"role": "protected", "peer": self._order.peer.name, "term": greeting.welcome.term})
        self._pipeline.begin(greeting.welcome.term)
        self._outbox.attach(greeting.stream, greeting.welcome.term, 0)
        self._peer.start(greeting)
        parts.build()
        pump = DiskPump(parts.logs, self._outbox)
        start_mirrors(parts.domain, parts.logs, parts.mirrors)
        pump.start()
        try:
            wait_for_disks(parts.domain, parts.mirrors, pump, self._progress)
            copy_memory(parts.domain, parts.capture, parts.encoder, self._outbox, self._progress)
        finally:
            pump.finish()
        self._progress("first epoch", 0, 1, "epoch")
        parts.measure_pauses(self.figures.paused)
        parts.gates.install()
        self._gated = True
        parts.gates.hold()
        for work in (self._cut_epochs, self._ship_epochs):
            threading.Thread(target=self._guarded, args=(work,), name=work.__name__, daemon=True).start()
        self._await_first_ack()
        self.figures.set("protected", f"epoch by epoch to {self._order.peer.name}")

    def _await_first_ack(self) -> None:
        with self._lock:
            self._lock.wait_for(lambda: self._pipeline.committed > 0 or self._over.is_set(), FIRST_ACK_S)
        if not self._pipeline.committed:
            why = self.figures.reason if self._over.is_set() else f"no answer within {FIRST_ACK_S:g} s"
            raise PeerUnreachable(f"agent {self._order.peer.name} did not take the first epoch: {why}")

    def _hello(self, resume: bool) -> Hello:
        parts = self._parts
        assert parts is not None
        domain = parts.domain
        return Hello(
            version=__version__,
            primary=self._order.host,
            vm=domain.name,
            uuid=domain.uuid,
            term=self._pipeline.term,
            resume=resume,
            epoch=self._pipeline.captured,
            machine=domain.machine,
            domain_xml=domain.xml,
            blocks=[RamBlock(block.name, block.size) for block in parts.blocks],
            disks=[Disk(disk.target, disk.capacity_bytes) for disk in parts.disks if not disk.readonly],
            heartbeat_ms=self._order.protection.heartbeat_ms,
            qemu_version=str(parts.deadline.call("version", parts.connection.getVersion)),
        )

    # --- the epochs ---

    def _guarded(self, work: Callable[[], None]) -> None:
        """Task boundary: a failure of cutting or shipping ends protection, visibly."""
        try:
            work()
        except Exception as exc:
            if not self._over.is_set():
                log.exception("%s failed", work.__name__)
                self._fail(exc)

    def _cut_epochs(self) -> None:
        interval = self._order.protection.epoch_ms / 1000
        due = time.monotonic()
        while not self._over.is_set():
            epoch = self._wait_for_turn(due)
            if epoch is None:
                continue
            due = max(due + interval, time.monotonic() + interval / 2)
            self._cut(epoch)

    def _wait_for_turn(self, due: float) -> int | None:
        """The epoch to cut now: when it is due, or sooner when a disk log is full, and the window has room."""
        assert self._parts is not None
        while not self._over.is_set():
            left = due - time.monotonic()
            if left <= 0 or any(writes.pressed for writes in self._parts.logs):
                break
            self._over.wait(min(left, 0.02))
        with self._lock:
            self._lock.wait_for(lambda: self._over.is_set() or self._pipeline.next_epoch() is not None, 0.5)
            return None if self._over.is_set() else self._pipeline.next_epoch()

    def _cut(self, epoch: int) -> None:
        parts = self._parts
        assert parts is not None
        positions: list[int] = []
        with ExitStack() as stack, self._gate_lock:
            for writes in parts.logs:
                stack.enter_context(writes.cutting())

            def at_stop() -> None:
                parts.gates.mark_begin(epoch)
                positions.extend(writes.position() for writes in parts.logs)

            cut = parts.capture.cut(at_stop, parts.gates.mark_wait)
        with self._lock:
            self._pipeline.cut(epoch)
        self.figures.cut(epoch, cut.pages)
        self._cuts.put((epoch, cut, positions, list(self._gate_figures().addresses)))

    def _gate_figures(self) -> GateFigures:
        assert self._parts is not None
        with self._gate_lock:
            return self._parts.gates.figures()

    def _ship_epochs(self) -> None:
        while (item := self._cuts.get()) is not None and not self._over.is_set():
            frames = self._encode(*item)
            self.figures.shipped(frames.payload_bytes)
            self._outbox.ship(frames)

    def _encode(self, epoch: int, cut: Cut, positions: list[int], addresses: list[str]) -> EpochFrames:
        parts = self._parts
        assert parts is not None
        writes = [log.take(upto, WRITES_S) for log, upto in zip(parts.logs, positions, strict=True)]
        self._require_mirrors()
        return parts.encoder.epoch(epoch, cut, writes, addresses)

    def _require_mirrors(self) -> None:
        """A mirror that works after the cut worked at the cut: its job does not come back once it failed."""
        parts = self._parts
        assert parts is not None
        if not parts.mirrors:
            return
        jobs = parts.deadline.call("block jobs", query_block_jobs, parts.domain.handle)
        gone = unsynced(jobs, [mirror.target for mirror in parts.mirrors])
        if gone:
            raise DiskError(f"the mirror of disk {', '.join(gone)} ended", hint="see QEMU's log of this VM")

    # --- what the agent says (called from the peer's thread) ---

    def on_ack(self, term: int, epoch: int) -> None:
        """Release what the agent holds."""
        with self._lock:
            release = self._pipeline.ack(term, epoch)
            if release is not None and self._parts is not None:
                with self._gate_lock:
                    self._parts.gates.release(release.epoch)
            self._lock.notify_all()
        if release is not None:
            self._outbox.acked(release.epoch)
            self.figures.committed(release.epoch)

    def on_lost(self, reason: str) -> None:
        """Output stays held until the agent answers, or somebody decides."""
        with self._lock:
            self._pipeline.lost()
        self._outbox.detach()
        if self._pipeline.state is PrimaryState.HELD:
            self.figures.set("held", f"{reason}; output is held until the agent answers, or `remusdb unprotect`")
        else:
            self._fail(PeerUnreachable(reason))

    def on_resumed(self, stream: FrameStream, welcome: Welcome) -> None:
        """The same session goes on: the agent tells what it holds, the rest is sent again."""
        with self._lock:
            release, _again = self._pipeline.resumed(welcome.term, welcome.committed)
            if release is not None and self._parts is not None:
                with self._gate_lock:
                    self._parts.gates.release(release.epoch)
            self._lock.notify_all()
        self._outbox.attach(stream, welcome.term, welcome.committed)
        self.figures.set("protected", f"epoch by epoch to {self._order.peer.name}; the connection was made anew")

    def on_renounced(self, reason: str) -> None:
        """The agent can no longer take over: the VM may speak freely, unprotected."""
        self._renounced.set()
        if self._pipeline.state is PrimaryState.SEEDING:
            self._outbox.detach()
            self._fail(PeerRefused(f"agent {self._order.peer.name} gave up: {reason}"))
        elif not self._over.is_set() and not self._leaving:
            threading.Thread(target=self._finish, args=("failed", f"the agent gave up: {reason}"), daemon=True).start()

    def on_fenced(self, term: int, reason: str) -> None:
        """The agent runs the VM: this side is silent for good."""
        with self._lock:
            self._pipeline.fence(term)
            self._lock.notify_all()
        self._over.set()
        if self._parts is not None:
            with self._gate_lock:
                self._parts.gates.drop_held()
        self._save({"role": "fenced", "peer": self._order.peer.name, "term": self._pipeline.term})
        self.figures.set("fenced", f"{reason}; the VM here is shut off from the network")

    # --- ends ---

    def _fail(self, exc: Exception) -> None:
        """Cutting or shipping cannot go on. Dead VM: say nothing more, so that the agent takes over."""
        parts = self._parts
        self._failure = self._failure or exc
        self.figures.set("failed", str(exc))
        if parts is not None and self._pipeline.committed and not parts.domain.alive():
            self._over.set()
            self._peer.close()
            self.figures.set("failed", "QEMU died; the agent takes over when its silence limit is reached")
            return
        if self._pipeline.state is PrimaryState.SEEDING:
            self._over.set()
            with self._lock:
                self._lock.notify_all()
            return
        self._over.set()
        self._outbox.say(FrameType.BYE, pack(Notice(f"protection ended: {exc}")))
        if self._renounced.wait(RENOUNCE_S):
            self._finish("failed", str(exc))
        else:
            self.figures.set("held", f"{exc}; and the agent does not answer: output is held")

    def _finish(self, state: str, reason: str) -> None:
        """The agent renounced (or is declared dead): take everything down, output flows."""
        with self._lock:
            self._pipeline.end()
        self._over.set()
        self._cuts.put(None)
        self._peer.close()
        self._save({"role": "none", "term": self._pipeline.term, "reason": reason})
        if self._parts is not None:
            with self._gate_lock:
                self._parts.close(remove_gates=True)
        self.figures.set(state, reason)
        self.ended.set()

    def _abandon(self) -> None:
        """protect() failed: nothing was promised yet, so everything is taken down."""
        self._outbox.say(FrameType.BYE, pack(Notice("protect failed")))
        self._over.set()
        self._cuts.put(None)
        self._peer.close()
        if self._parts is not None:
            self._parts.close(remove_gates=self._gated)
        if self._pipeline.term:
            self._save({"role": "none", "term": self._pipeline.term, "reason": self.figures.reason})
        self.ended.set()

