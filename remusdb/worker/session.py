# SPDX-License-Identifier: Apache-2.0
"""One VM's protection on its primary host.

Owns the parts (capture, disks, gates), the pipeline, the epoch loop (`epoch_loop.py`) and the connection
(`agent_link.py`).
Invariant: a gate is told to release only what the pipeline, under `lock`, allows; once the session is fenced or
lost, nothing but `unprotect`, the arbiter's word or a resumed session opens it again.

    protect() ─▶ seeding ─▶ protected ◀─▶ held (agent lost)
                    │           ├─▶ fenced (another host owns the VM: output stays shut)
                    │           ├─▶ solo (no backup can take over: output flows; a fresh session follows)
                    └───────────┴─▶ failed, unprotected (VM and network as found)

How it ends is in `ending.py`, going on alone in `solo.py`, the planned move in `handover.py`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Any

from remusdb import __version__
from remusdb.arbiter.arbiter import Arbiter
from remusdb.core.messages import Base, Hello, Notice, Proof, RamBlock, Welcome, pack
from remusdb.core.pipeline import Pipeline, PrimaryState, Release
from remusdb.core.wire import FrameType
from remusdb.disk.base import Bases
from remusdb.errors import BadFrame, Fenced, GateError, PeerRefused, PeerUnreachable, RefusedForSafety
from remusdb.history import Event, EventName, History
from remusdb.names import require_name
from remusdb.net.gate import GateFigures
from remusdb.state import PROMOTED, StateStore, VmState
from remusdb.threads import apart, start
from remusdb.transport.stream import FrameStream
from remusdb.troubles import Troubles
from remusdb.vm.autostart import autostart_off
from remusdb.worker.agent_link import Peer
from remusdb.worker.brake import Brake, BrakeThread
from remusdb.worker.ending import DEAD_HINT, RENOUNCE_S, Ending
from remusdb.worker.epoch_loop import EpochLoop
from remusdb.worker.greeting import Greeting
from remusdb.worker.handover import Handover
from remusdb.worker.initial_sync import DiskPump, copy_memory, start_mirrors, wait_for_disks
from remusdb.worker.learned import agree_on, greet_anew
from remusdb.worker.lookout import look_out
from remusdb.worker.memory_copy import Progress
from remusdb.worker.metrics import Figures, vm_status
from remusdb.worker.outbox import Outbox
from remusdb.worker.proof import StandbyProof
from remusdb.worker.resources import Parts
from remusdb.worker.solo import Solo, claim_session
from remusdb.worker.spec import Order
from remusdb.worker.tapwatch import open_taps, shut_taps

log = logging.getLogger(__name__)


FIRST_ACK_S = 60.0


class Session:
    """Protection of one VM, from the initial copy to its end."""

    def __init__(self, order: Order, store: StateStore, history: History, progress: Progress) -> None:
        self.order = order
        self.state: VmState = store.load(order.vm)
        self.arbiter = Arbiter(order.arbiter) if order.arbiter else None
        self.pipeline = Pipeline(order.protection.window)
        self.pipeline.term = self.state.term
        self.peer = Peer(order, self.hello, self)
        self.parts: Parts | None = None
        self.figures = Figures(
            Troubles(lambda event, what, reason: self.tell(event, self.figures.state, reason, what=what))
        )
        self.lock = threading.Condition()
        self.over = threading.Event()  # nothing more is cut or shipped
        self.outbox = Outbox(order.protection.sync_bandwidth_mib_s * 2**20, self.over)
        self.ended = threading.Event()
        self.renounced = threading.Event()
        self.leaving = False
        self.gated = False
        self.greeted = False
        self.was_armed = self.state.armed
        self.was_wanted = self.state.wanted or (self.state.role in PROMOTED and order.protection.auto_reprotect)
        self.failure: Exception | None = None
        self._bases: Bases | None = None  # while the initial copy runs
        self._store = store
        self._history = history
        self._progress = progress
        self.ending = Ending(self)
        self.solo = Solo(self)
        self.handover = Handover(self)
        self.proof = StandbyProof(self)
        self.epochs = EpochLoop(self.pipeline, self.outbox, self.figures, self.lock, self.ending.fail)

    # --- orders ---

    def protect(self) -> None:
        """Copy everything, cut epoch 1, and return once the agent holds it. On any error the VM is as it was."""
        try:
            self._protect()
        except BaseException as exc:
            cause = self.ending.why(self.failure or exc)
            self.figures.set("failed", str(cause))
            self.ending.abandon(cause)
            raise cause from exc

    def unprotect(self, peer_is_dead: bool) -> None:
        """End protection in good order: the agent gives its standby up first, then output flows freely."""
        self._refuse_fenced()
        self.leaving = True
        self.outbox.say(FrameType.BYE, pack(Notice("unprotect was asked", forget=True)))
        heard = self.renounced.wait(RENOUNCE_S)
        self._refuse_fenced()
        # An agent that answers is not dead, whatever was said of it: it must give its word.
        # In the initial copy it has nothing that could take over.
        may_take_over = self.may_be_replaced() or not self.greeted
        if not heard and may_take_over and (not peer_is_dead or self.pipeline.state is PrimaryState.PROTECTED):
            self.leaving = False
            if self.renounced.is_set():
                return self.ending.finish("unprotected", "unprotect was asked")
            raise RefusedForSafety(
                f"agent {self.order.peer.name} does not answer: it may have taken over or may still do so",
                hint=DEAD_HINT,
            )
        self.ending.finish("unprotected", "unprotect was asked")

    def fenced(self) -> bool:
        """Whether another host owns the VM."""
        return self.pipeline.state is PrimaryState.FENCED

    def _refuse_fenced(self) -> None:
        if self.fenced():
            raise Fenced(
                f"host {self.order.peer.name} runs this VM now; its output stays shut here",
                hint="it is put away by itself; see: remusdb status",
            )

    def status(self) -> dict[str, Any]:
        """What is known of the VM, by the keys of VmStatus (remusdb/host/status.py)."""
        return vm_status(self.order, self.pipeline, self.parts, self.figures, self.gate_figures())

    # --- what is remembered and told ---

    def save(self, **changes: Any) -> None:
        """Make it durable: returns when it is on the disk, raises when it cannot be."""
        self.state = self._store.update(self.order.vm, changed_at_ns=time.time_ns(), **changes)

    def enter(self, state: str, reason: str, event: EventName | None = None) -> None:
        """A new state, with why; with `event`, also into the history and to the hooks."""
        was = self.figures.state
        self.figures.set(state, reason)
        if event:
            self.tell(event, was, reason)

    def tell(self, event: EventName, was: str, reason: str, **details: str) -> None:
        """Into the history and to the hooks."""
        self._history.record(
            Event(
                vm=self.order.vm,
                at_ns=time.time_ns(),
                host=self.order.host,
                by="worker",
                event=event,
                was=was,
                now=self.figures.state,
                reason=reason,
                term=self.pipeline.term,
                epoch=self.pipeline.committed,
                heard_ms_ago=self.peer.silence_ms(),
                peer=self.order.peer.name,
                details=dict(details),
            )
        )

    # --- the initial copy ---

    def _protect(self) -> None:
        self.parts = parts = Parts(self.order)
        if self.was_armed:
            self.adopt_gates()
        self.solo.start()
        greeting = self._greet()
        term = greeting.welcome.term
        self.outbox.attach(
            greeting.stream, term, 0
        )  # whatever fails from here on: `abandon` says BYE on it, and closes
        agree_on(self, term)
        claim_session(self, term)
        if self.gated:  # the agent gave up what it held: until the copy is complete the VM speaks unprotected
            parts.gates.open_all()  # before the record says so: a death in between must not leave it mute unnoticed
            open_taps(parts.domain.pid)
        # Wanted from here on: if this worker dies in the copy, another one begins anew.
        pair = {"owner": self.order.host, "peer": self.order.peer.name, "uuid": parts.domain.uuid}
        self.save(role="seeding", term=term, armed=False, wanted=True, **pair)
        self.pipeline.begin(term)
        self.handover.undo_old()
        self._bases = bases = Bases(greeting.welcome, [disk.size for disk in parts.replicas])
        self.peer.start(greeting)
        bases.wait(self.over, self._progress)
        parts.build()
        parts.watch_devices(self.ending.fail)
        pump = DiskPump(parts.logs, self.outbox, bases)
        brake = BrakeThread(Brake(parts.logs, parts.copy_speed), self.peer.silence_ms, self.ending.fail)
        start_mirrors(parts.domain, parts.logs, parts.mirrors)
        start(pump)
        start(brake)
        try:
            wait_for_disks(parts.domain, parts.mirrors, pump, self._progress)
            copy_memory(parts, self.outbox, self._progress)
        finally:
            brake.finish()
            pump.finish()
        self.outbox.await_seeded()  # before output is held for the first epoch: the agent is there, and has the rest
        self._bases = None  # its tables may take some memory
        self.figures.disks(pump.sent_bytes, bases.same_bytes)
        self._progress("first epoch", 0, 1, "epoch")
        parts.measure_pauses(self.figures.paused)
        parts.clock.told = self._clock_runs_slow
        self._arm(parts)
        self.epochs.start(parts)
        look_out(self, parts)
        self._await_first_ack()
        self.proof.wait(self._progress)
        if self.pipeline.state is PrimaryState.PROTECTED and not self.over.is_set():
            self.enter("protected", f"epoch by epoch to {self.order.peer.name}", "protected")
            self.proof.told()

    def _clock_runs_slow(self, why: str) -> None:
        """The clock was put right at each cut, and cannot be any more: protection goes on."""
        self.enter(self.figures.state, f"the guest's clock is not put right at each cut: {why}", "clock")

    def _arm(self, parts: Parts) -> None:
        """From here on the agent may take over: that is on the disk before the first epoch is cut."""
        autostart = self.state.autostart or parts.calls.call("autostart", autostart_off, parts.domain.handle)
        gates = [{"kind": parts.gate_kind, "tap": nic.tap, "mac": nic.mac} for nic in parts.domain.nics]
        self.save(role="protected", reason="protected", wanted=True, armed=True, gates=gates, autostart=autostart)
        with parts.gates.turn:
            if not self.gated:
                parts.gates.install()
                self.gated = True
            parts.gates.hold()
        if parts.devices is not None:
            parts.devices.arm()

    def _greet(self) -> Greeting:
        """A new session with the agent; when another host owns the VM, this side is fenced."""
        try:
            greeting = greet_anew(self)
        except Fenced as exc:
            if not self.was_armed:  # nobody can have taken over from here: that is another VM's past, or hearsay
                peer, vm = self.order.peer.name, self.order.vm
                hint = f"if {vm} was moved here by hand and is not on {peer} any more, on {peer}: remusdb forget {vm}"
                raise PeerRefused(str(exc), hint=hint) from exc
            self.on_fenced(exc.term, str(exc))
            raise
        self.greeted = True
        return greeting

    def adopt_gates(self) -> None:
        """An earlier worker died with the gates closed, or just before it made them."""
        assert self.parts is not None
        try:
            shut_taps(self.parts.domain.pid, [nic.tap for nic in self.parts.domain.nics])  # nobody watched meanwhile
            with self.parts.gates.turn:
                self.parts.gates.adopt()
                self.gated = True
        except GateError as exc:
            log.info("no gate of an earlier session to adopt: %s", exc)

    def _await_first_ack(self) -> None:
        with self.lock:
            self.lock.wait_for(lambda: self.pipeline.committed > 0 or self.over.is_set(), FIRST_ACK_S)
        if self.ending.in_copy or not self.pipeline.committed:
            why = self.figures.reason if self.over.is_set() else f"no answer within {FIRST_ACK_S:g} s"
            raise PeerUnreachable(f"agent {self.order.peer.name} did not take the first epoch: {why}")

    def hello(self, resume: bool) -> Hello:
        """What this session says first: of a new one, or of one that goes on (`resume`)."""
        parts = self.parts
        assert parts is not None
        domain = parts.domain
        return Hello(
            version=__version__,
            primary=self.order.host,
            vm=require_name(domain.name),
            uuid=domain.uuid,
            term=self.pipeline.term,
            resume=resume,
            epoch=self.pipeline.captured,
            machine=domain.machine,
            domain_xml=domain.xml,
            blocks=[RamBlock(block.name, block.size) for block in parts.blocks],
            disks=parts.replicas,
            heartbeat_ms=self.order.protection.heartbeat_ms,
            qemu_version=parts.qemu_version,
            arbiter=self.arbiter.cluster() if self.arbiter and not resume else "",
            told=self._bases.told if resume and self._bases is not None else [],
            autostart=self.state.autostart or parts.autostart,
        )

    def gate_figures(self) -> GateFigures:
        """The gates' counters; a gate that is not there, or died, has none."""
        parts = self.parts
        if parts is None:
            return GateFigures()
        with parts.gates.turn:
            if not self.gated or self.ended.is_set():
                return GateFigures()
            try:
                figures = parts.gates.figures()
            except GateError:
                return GateFigures()
        self.epochs.addresses = figures.addresses
        return figures

    # --- what the agent says (called from the peer's thread) ---

    def may_be_replaced(self) -> bool:
        """Once an epoch was cut, the agent may hold it."""
        return self.pipeline.captured > 0

    def on_base(self, base: Base) -> None:
        """Hashes of an older image that the agent has: the initial copy waits for these."""
        bases = self._bases
        if bases is None:
            raise BadFrame("hashes of disks came when nobody asked")
        bases.take(base)

    def on_taken(self, frames: int) -> None:
        """The agent has applied so many frames of the initial copy."""
        self.outbox.seed_taken(frames)

    def on_given_up(self, reason: str) -> None:
        """The initial copy cannot go on with this agent's replica."""
        self.ending.fail(PeerUnreachable(reason))

    def on_ack(self, term: int, epoch: int) -> None:
        """Release what the agent holds."""
        with self.lock:
            release = self.pipeline.ack(term, epoch)
            self._release(release)
            self.lock.notify_all()
        if release is not None:
            self.outbox.acked(release.epoch)
            self.figures.committed(release.epoch)

    def _release(self, release: Release | None) -> None:
        """Open the gates up to an epoch. A gate that died releases nothing more, and protection ends."""
        if release is None or self.parts is None:
            return
        try:
            self.parts.gates.release(release.epoch)
        except GateError as exc:
            apart(self.ending.fail, exc, name="fail")

    def on_lost(self, reason: str) -> None:
        """Output stays held until the agent answers, the arbiter decides, or somebody does."""
        with self.lock:
            self.pipeline.lost()
        self.outbox.detach()
        if self.over.is_set() or self.leaving:
            return
        if self.pipeline.state is PrimaryState.HELD:
            self.enter("held", f"{reason}; output is held until the agent answers, or `remusdb unprotect`", "held")
            self.solo.consider(reason)
        else:
            self.enter("seeding", f"{reason}; the copy goes on when the agent is back", "lost")

    def on_resumed(self, stream: FrameStream, welcome: Welcome) -> None:
        """The same session goes on: the agent tells what it holds, the rest is sent again."""
        with self.solo.deciding, self.lock:
            release, _again = self.pipeline.resumed(welcome.term, welcome.committed)
            self._release(release)
            self.lock.notify_all()
        if self.leaving:  # what was said while there was no connection
            stream.send(FrameType.BYE, welcome.term, 0, pack(Notice("protection ends")))
            return
        self.outbox.attach_apart(stream, welcome.term, welcome.committed, welcome.taken)
        seeding = self.pipeline.state is PrimaryState.SEEDING
        how = "the initial copy goes on" if seeding else f"epoch by epoch to {self.order.peer.name}"
        self.enter("seeding" if seeding else "protected", f"{how}; the connection was made anew", "resumed")
        self.handover.cancel("the connection broke meanwhile")

    def on_proof(self, proof: Proof) -> None:
        """Whether the agent's standby would take this VM's state."""
        self.proof.take(proof)

    def on_declined(self, reason: str) -> None:
        """The agent does not take the VM over: it runs on here."""
        self.handover.cancel(reason)

    def on_renounced(self, reason: str) -> None:
        """The agent can no longer take over: the VM may speak freely, alone."""
        self.renounced.set()
        if self.pipeline.state is PrimaryState.SEEDING:
            self.outbox.detach()
            self.ending.fail(PeerRefused(f"agent {self.order.peer.name} gave up: {reason}"))
        elif self.ending.late is not None:
            self.ending.finish_apart(*self.ending.late)
        elif not self.over.is_set() and not self.leaving:
            self.ending.finish_apart("solo", f"agent {self.order.peer.name} gave up: {reason}")

    def on_fenced(self, term: int, reason: str) -> None:
        """Another host owns the VM: this side is silent for good."""
        with self.lock:
            self.pipeline.fence(term)
            self.lock.notify_all()
        self.over.set()
        self.epochs.stop()
        if self.parts is not None and self.gated:
            with contextlib.suppress(GateError):
                self.parts.gates.drop_held()
        self.enter("fenced", f"{reason}; the VM here is shut off from the network", "fenced")
        try:
            owner = self.order.peer.name
            self.save(role="fenced", term=self.pipeline.term, owner=owner, reason=reason, put_away=False)
        finally:
            self.handover.done.set()
            self.ended.set()

    def on_broken(self, exc: Exception) -> None:
        """The agent cannot be heard any more: what is held stays held, and status says so."""
        self.over.set()
        self.epochs.stop()
        self.enter("held", f"{type(exc).__name__}: {exc}; output is held, see `remusdb unprotect`", "held")

    def close_parts(self, *, remove_gates: bool) -> None:
        """Take down what protection added to the VM; with `remove_gates` the way out is free."""
        parts, gated, self.gated = self.parts, self.gated, False
        if parts is not None:
            with parts.gates.turn:
                parts.close(remove_gates=remove_gates and gated)
