# SPDX-License-Identifier: Apache-2.0
"""One VM's protection on its primary host.

Owns the parts (capture, disks, gates), the pipeline, the epoch loop (`epochs.py`) and the connection (`peer.py`).
Invariant: a gate is told to release only what the pipeline, under `lock`, allows; once the
session is fenced or lost, nothing but `unprotect` or a resumed session opens it again.

    protect() ─▶ seeding ─▶ protected ◀─▶ held (agent lost)
                    │           ├─▶ fenced (the agent took over: output stays shut)
                    └───────────┴─▶ failed, unprotected (the agent renounced: VM and network as found)
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from remusdb import __version__
from remusdb.core.messages import Base, Hello, Notice, RamBlock, Welcome, pack
from remusdb.core.pipeline import Pipeline, PrimaryState, Release
from remusdb.core.wire import FrameType
from remusdb.disk.base import Bases
from remusdb.errors import BadFrame, Fenced, GateError, NoStandby, PeerRefused, PeerUnreachable, RefusedForSafety
from remusdb.host.epochs import EpochLoop
from remusdb.host.figures import Figures, vm_status
from remusdb.host.order import Order
from remusdb.host.outbox import Outbox
from remusdb.host.parts import Parts
from remusdb.host.peer import Greeting, Peer, greet
from remusdb.host.seed import DiskPump, Progress, copy_memory, start_mirrors, wait_for_disks
from remusdb.net.gate import GateFigures
from remusdb.transport.stream import FrameStream

log = logging.getLogger(__name__)

DEAD_HINT = "stop the agent's host first, then say --peer-is-dead; or try again when the agent is back"
FIRST_ACK_S = 60.0
RENOUNCE_S = 5.0
QEMU_END_S = 0.25  # after a failed cut: how long a QEMU that was killed may take to end

Save = Callable[[dict[str, Any]], None]


class Session:
    """Protection of one VM, from the initial copy to its end."""

    def __init__(self, order: Order, save: Save, progress: Progress) -> None:
        self._order = order
        self._save = save
        self._progress = progress
        self._parts: Parts | None = None
        self._pipeline = Pipeline(order.protection.window)
        self._pipeline.term = int((order.previous or {}).get("term", 0))
        self._outbox = Outbox(order.protection.sync_bandwidth_mib_s * 2**20)
        self._peer = Peer(order, self._hello, self)
        self._lock = threading.Condition()
        self._gate_lock = threading.Lock()
        self._over = threading.Event()
        self._renounced = threading.Event()
        self._leaving = False
        self._finishing = threading.Lock()
        self._failing = threading.Lock()  # taken by the first failure and kept
        self._late_end: tuple[str, str] | None = None
        self._gated = False
        self._greeted = False
        self._was_protected = (order.previous or {}).get("role") == "protected"
        self._failure: Exception | None = None
        self._bases: Bases | None = None  # while the initial copy runs
        self.figures = Figures()
        self.ended = threading.Event()
        self._epochs = EpochLoop(self._pipeline, self._outbox, self.figures, self._lock, self._gate_lock, self._fail)

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
        if self._fenced():
            if self._parts is not None and not self._parts.domain.alive():
                self._stop_work()
                return self._close_parts(remove_gates=True)
            raise Fenced("the other host runs this VM now; its output stays shut here", hint="destroy the VM here")
        self._leaving = True
        self._outbox.say(FrameType.BYE, pack(Notice("unprotect was asked", forget=True)))
        heard = self._renounced.wait(RENOUNCE_S)
        if self._fenced():
            raise Fenced("the other host took this VM over meanwhile", hint="destroy the VM here")
        # An agent that answers is not dead, whatever was said of it: it must give its word.
        if not heard and (not peer_is_dead or self._pipeline.state is PrimaryState.PROTECTED):
            self._leaving = False
            if self._renounced.is_set():
                return self._finish("unprotected", "unprotect was asked")
            raise RefusedForSafety(
                f"agent {self._order.peer.name} does not answer: it may have taken over or may still do so",
                hint=DEAD_HINT,
            )
        self._finish("unprotected", "unprotect was asked")

    def _fenced(self) -> bool:
        return self._pipeline.state is PrimaryState.FENCED

    def take_out(self, peer_is_dead: bool) -> None:
        """Undo what an earlier session left behind: its gates, once the agent cannot take over any more."""
        self._parts = Parts(self._order)
        self._adopt_gates()
        if (self._order.previous or {}).get("role") == "fenced":
            raise Fenced("the other host runs this VM now; its output stays shut here", hint="destroy the VM here")
        try:
            greeting = greet(self._order, self._hello(True))
            bye = pack(Notice("unprotect was asked", forget=True))
            greeting.stream.send(FrameType.BYE, greeting.welcome.term, 0, bye)
            self._await_renounce(greeting.stream)
        except NoStandby:
            log.info("the agent has no standby of that session")
        except PeerUnreachable as exc:
            if not peer_is_dead:
                self._close_parts(remove_gates=False)
                raise RefusedForSafety(f"{exc}: the agent may have taken over", hint=DEAD_HINT) from exc
        self._finish("unprotected", "unprotect was asked")

    def _await_renounce(self, stream: FrameStream) -> None:
        end = time.monotonic() + RENOUNCE_S
        while time.monotonic() < end:
            frame = stream.receive(RENOUNCE_S)
            if frame is not None and frame.type is FrameType.RENOUNCE:
                return stream.close()
        raise PeerUnreachable(f"agent {self._order.peer.name} does not give its standby up")

    def status(self) -> dict[str, Any]:
        """VmStatus, see docs/architecture.md."""
        return vm_status(self._order, self._pipeline, self._parts, self.figures, self._gate_figures())

    # --- the initial copy ---

    def _protect(self) -> None:
        self._parts = parts = Parts(self._order)
        if self._was_protected:
            self._adopt_gates()
        greeting = self._greet()
        role = "protected" if self._gated else "seeding"
        self._save({"role": role, "term": greeting.welcome.term, "reason": "the initial copy was under way"})
        self._pipeline.begin(greeting.welcome.term)
        self._outbox.attach(greeting.stream, greeting.welcome.term, 0)
        self._bases = bases = Bases(greeting.welcome, [disk.size for disk in parts.replicas])
        self._peer.start(greeting)
        bases.wait(self._over, self._progress)
        parts.build()
        pump = DiskPump(parts.logs, self._outbox, bases)
        start_mirrors(parts.domain, parts.logs, parts.mirrors)
        pump.start()
        try:
            wait_for_disks(parts.domain, parts.mirrors, pump, self._progress)
            copy_memory(parts.domain, parts.capture, parts.encoder, self._outbox, self._progress)
        finally:
            pump.finish()
        self._bases = None  # its tables may take some memory
        self.figures.disks(pump.sent_bytes, bases.same_bytes)
        self._progress("first epoch", 0, 1, "epoch")
        parts.measure_pauses(self.figures.paused)
        self._save({"role": "protected", "term": greeting.welcome.term, "reason": "protected"})
        if not self._gated:
            parts.gates.install()
            self._gated = True
        parts.gates.hold()
        self._epochs.start(parts)
        self._await_first_ack()
        if self._pipeline.state is PrimaryState.PROTECTED:
            self.figures.set("protected", f"epoch by epoch to {self._order.peer.name}")

    def _greet(self) -> Greeting:
        """A new session with the agent; when it took over meanwhile, this side is fenced."""
        try:
            greeting = greet(self._order, self._hello(False))
        except Fenced as exc:
            self.on_fenced(self._pipeline.term, str(exc))
            raise
        self._greeted = True
        return greeting

    def _adopt_gates(self) -> None:
        """An earlier worker died with the gates closed, or just before it made them."""
        assert self._parts is not None
        try:
            self._parts.gates.adopt()
            self._gated = True
        except GateError as exc:
            log.info("no gate of an earlier session to adopt: %s", exc)

    def _await_first_ack(self) -> None:
        with self._lock:
            self._lock.wait_for(lambda: self._pipeline.committed > 0 or self._over.is_set(), FIRST_ACK_S)
        if self._failure is not None or not self._pipeline.committed:
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
            disks=parts.replicas,
            heartbeat_ms=self._order.protection.heartbeat_ms,
            qemu_version=parts.qemu_version,
        )

    def _gate_figures(self) -> GateFigures:
        """The gates' counters; a gate that is not there, or died, has none."""
        parts = self._parts
        with self._gate_lock:
            if parts is None or not self._gated or self.ended.is_set():
                return GateFigures()
            try:
                figures = parts.gates.figures()
            except GateError:
                return GateFigures()
        self._epochs.addresses = figures.addresses
        return figures

    # --- what the agent says (called from the peer's thread) ---

    def on_ack(self, term: int, epoch: int) -> None:
        """Release what the agent holds."""
        with self._lock:
            release = self._pipeline.ack(term, epoch)
            self._release(release)
            self._lock.notify_all()
        if release is not None:
            self._outbox.acked(release.epoch)
            self.figures.committed(release.epoch)

    def on_base(self, message: Base) -> None:
        """The initial copy waits for these."""
        bases = self._bases
        if bases is None:
            raise BadFrame("hashes of disks came when nobody asked")
        bases.take(message)

    def _release(self, release: Release | None) -> None:
        """Open the gates up to an epoch. A gate that died releases nothing more, and protection ends."""
        if release is None or self._parts is None:
            return
        try:
            with self._gate_lock:
                self._parts.gates.release(release.epoch)
        except GateError as exc:
            threading.Thread(target=self._fail, args=(exc,), name="fail", daemon=True).start()

    def on_lost(self, reason: str) -> None:
        """Output stays held until the agent answers, or somebody decides."""
        with self._lock:
            self._pipeline.lost()
        self._outbox.detach()
        if self._over.is_set() or self._leaving:
            return
        if self._pipeline.state is PrimaryState.HELD:
            self.figures.set("held", f"{reason}; output is held until the agent answers, or `remusdb unprotect`")
        else:
            self._fail(PeerUnreachable(reason))

    def on_resumed(self, stream: FrameStream, welcome: Welcome) -> None:
        """The same session goes on: the agent tells what it holds, the rest is sent again."""
        with self._lock:
            release, _again = self._pipeline.resumed(welcome.term, welcome.committed)
            self._release(release)
            self._lock.notify_all()
        self._outbox.attach(stream, welcome.term, welcome.committed)
        if self._leaving:  # what was said while there was no connection
            return self._outbox.say(FrameType.BYE, pack(Notice("protection ends")))
        self.figures.set("protected", f"epoch by epoch to {self._order.peer.name}; the connection was made anew")

    def on_renounced(self, reason: str) -> None:
        """The agent can no longer take over: the VM may speak freely, unprotected."""
        self._renounced.set()
        if self._pipeline.state is PrimaryState.SEEDING:
            self._outbox.detach()
            self._fail(PeerRefused(f"agent {self._order.peer.name} gave up: {reason}"))
        elif self._late_end is not None:
            self._finish_apart(*self._late_end)
        elif not self._over.is_set() and not self._leaving:
            self._finish_apart("failed", f"the agent gave up: {reason}")

    def on_fenced(self, term: int, reason: str) -> None:
        """The agent runs the VM: this side is silent for good."""
        with self._lock:
            self._pipeline.fence(term)
            self._lock.notify_all()
        self._over.set()
        self._epochs.stop()
        if self._parts is not None:
            with self._gate_lock, contextlib.suppress(GateError):
                self._parts.gates.drop_held()
        self.figures.set("fenced", f"{reason}; the VM here is shut off from the network")
        try:
            self._save({"role": "fenced", "term": self._pipeline.term, "reason": reason})
        finally:
            self.ended.set()

    def on_broken(self, exc: Exception) -> None:
        """The agent cannot be heard any more: what is held stays held, and status says so."""
        self._over.set()
        self._epochs.stop()
        self.figures.set("held", f"{type(exc).__name__}: {exc}; output is held, see `remusdb unprotect`")

    # --- ends ---

    def _fail(self, exc: Exception) -> None:
        """Cutting or shipping cannot go on. A dead VM falls silent, so that the agent takes over. Once."""
        if not self._failing.acquire(blocking=False):
            return
        self._failure = self._failure or exc
        self.figures.set("failed", str(exc))
        self._over.set()
        self._epochs.stop()
        with self._lock:
            self._lock.notify_all()
        if self._pipeline.state is PrimaryState.SEEDING:
            return  # protect() sees it and cleans up
        if self._parts is not None and self._parts.domain.ends_within(QEMU_END_S):
            self._peer.pause()  # at once: the agent begins to count
            self._vm_ended()
        else:
            self._end_in_good_order("failed", str(exc))

    def _vm_ended(self) -> None:
        """QEMU is gone; heartbeats stopped already. Only if somebody wanted the VM off, the agent is told to let go."""
        assert self._parts is not None
        if self._parts.domain.was_shut_down():
            self._end_in_good_order("unprotected", "the VM was shut down")
        else:
            self._peer.close()
            self.figures.set("failed", "QEMU died; the agent takes over when its silence limit is reached")
            self.ended.set()

    def _end_in_good_order(self, state: str, reason: str) -> None:
        """The agent gives its standby up first; without its word, output stays held."""
        self._leaving = True
        self._late_end = (state, reason)  # first: the word may come at the very end of the wait
        self._outbox.say(FrameType.BYE, pack(Notice(reason)))
        if self._renounced.wait(RENOUNCE_S):
            self._finish(state, reason)
        else:
            self.figures.set("held", f"{reason}; and the agent does not answer: output is held, see `unprotect`")

    def _finish_apart(self, state: str, reason: str) -> None:
        """`_finish` in a thread of its own: it waits for libvirt, which the peer's thread must not."""
        threading.Thread(target=self._finish, args=(state, reason), name="finish", daemon=True).start()

    def _finish(self, state: str, reason: str) -> None:
        """The agent cannot take over (its word, or an operator's): take everything down, output flows. Once."""
        with self._finishing:
            if self.ended.is_set():
                return
            with self._lock:
                self._pipeline.end()
            self._stop_work()
            try:
                self._close_parts(remove_gates=True)
                # On record only now: a death in between must not leave a VM mute that nothing calls held.
                self._save({"role": "none", "term": self._pipeline.term, "reason": reason})
            finally:
                self.figures.set(state, reason)
                self.ended.set()

    def _abandon(self) -> None:
        """protect() failed. Before the first epoch went out the agent cannot take over; after it, it must say so."""
        self._leaving = True
        self._outbox.say(FrameType.BYE, pack(Notice("protect failed")))
        shipped = self._pipeline.captured > 0 or (self._was_protected and not self._greeted)
        safe = not shipped or self._renounced.wait(RENOUNCE_S)
        self._stop_work()
        if self._pipeline.state is PrimaryState.FENCED:
            self._close_parts(remove_gates=False)
        elif safe:
            self._close_parts(remove_gates=self._gated)
            if self._greeted or self._was_protected:
                self._save({"role": "none", "term": self._pipeline.term, "reason": self.figures.reason})
        else:
            self._close_parts(remove_gates=False)
            self.figures.set("held", f"{self.figures.reason}; output is held until protect or unprotect succeeds")
        self.ended.set()

    def _stop_work(self) -> None:
        self._over.set()
        self._epochs.stop()
        self._peer.close()

    def _close_parts(self, *, remove_gates: bool) -> None:
        parts, gated, self._gated = self._parts, self._gated, False
        if parts is not None:
            with self._gate_lock:
                parts.close(remove_gates=remove_gates and gated)
