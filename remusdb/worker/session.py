# SPDX-License-Identifier: Apache-2.0
"""One VM's protection on its primary host: what `core/primary.py` decides is performed here.

Owns one thread, which works off the session's events and performs their effects in order. Whoever else knows something
(the agent's connection, the epoch loop, protect(), an operator's command) posts an event. Invariant: no gate is moved
and no state saved but by an effect.

    protect() ─▶ seeding ─▶ protected ◀─▶ held (agent lost)
                    │           ├─▶ fenced (another host owns the VM: output stays shut)
                    │           ├─▶ solo (no backup can take over: output flows; a fresh session follows)
                    └───────────┴─▶ failed, unprotected (VM and network as found)
"""

from __future__ import annotations

import threading
import time

from remusdb.arbiter.arbiter import Arbiter
from remusdb.control.api import Switched
from remusdb.control.status import VmStatus
from remusdb.core import primary_events as events
from remusdb.core.messages import Hello, Welcome
from remusdb.core.primary import Primary
from remusdb.errors import CannotProtect, DevicesChanged, Fenced, LibvirtAway, PeerUnreachable
from remusdb.history import History
from remusdb.net.gate import GateMetrics
from remusdb.reasons import Code, Reason
from remusdb.state import StateStore
from remusdb.transport.agent_client import Greeting
from remusdb.vm.runstate import RunState, run_state
from remusdb.wording import words
from remusdb.worker import vm_end
from remusdb.worker.agent_side import AgentSide
from remusdb.worker.claims import claim_session
from remusdb.worker.decider import Decider
from remusdb.worker.epoch_loop import EpochLoop
from remusdb.worker.hello import HelloWriter
from remusdb.worker.initial_sync import InitialSync
from remusdb.worker.journal import Journal
from remusdb.worker.lookout import Lookout
from remusdb.worker.mailbox import Mailbox
from remusdb.worker.memory_copy import Progress
from remusdb.worker.metrics import status_of
from remusdb.worker.orphan import ask_for_word
from remusdb.worker.outbox import Outbox
from remusdb.worker.performer import Performer
from remusdb.worker.proof import StandbyProof
from remusdb.worker.resources import Resources
from remusdb.worker.spec import ProtectionSpec, known
from remusdb.worker.vm_side import VmSide

FIRST_ACK_S = 60.0
BEGUN_AGAIN = (PeerUnreachable, LibvirtAway, DevicesChanged)  # a copy that failed so begins again automatically


class Session:
    """Protection of one VM, from the initial sync to its end."""

    def __init__(self, spec: ProtectionSpec, store: StateStore, history: History, progress: Progress) -> None:
        self.ended = threading.Event()
        self._spec = spec
        self._progress = progress
        self._over = threading.Event()  # nothing more is cut or shipped
        self._failure: Exception | None = None
        self._arbiter = Arbiter(spec.arbiter) if spec.arbiter else None
        self._primary = Primary(known(spec, store.load(spec.vm)), spec.protection.window)
        self._pipeline = self._primary.pipeline
        self._resources: Resources | None = None
        self._mailbox = mailbox = Mailbox()
        self._decider = Decider(self._primary, mailbox, lambda effect: self._performer.perform(effect))
        self._tell = self._decider.tell
        self._journal = Journal(spec, store, history, self._pipeline, lambda: self._agent.silence_ms())
        self._metrics = self._journal.metrics
        self._writer = HelloWriter(spec, self._pipeline, self._arbiter)
        outbox = Outbox(spec.protection.sync_bandwidth_mib_s * 2**20, self._over)
        self._sync = InitialSync(outbox, self._metrics, progress, self._fail)
        self._proof = StandbyProof(spec, self._journal, lambda: self._primary.is_protected)
        self._agent = AgentSide(
            spec, self._hello, mailbox, self._pipeline, outbox, self._sync, self._proof, self._metrics, self._fail
        )
        self._epochs = EpochLoop(self._pipeline, outbox, self._metrics, self._decider.lock, self._fail)
        self._performer = Performer(
            spec,
            self._agent,
            outbox,
            self._epochs,
            self._journal,
            mailbox,
            self._arbiter,
            self._over,
            self.ended,
            self._fail,
        )

    def start(self) -> None:
        """Be ready to decide. NoThread."""
        self._decider.start()

    # --- commands ---

    def protect(self) -> None:
        """Copy everything, cut epoch 1, and return once the agent holds it. On any error the VM is as it was."""
        try:
            self._protect()
        except BaseException as exc:
            cause = vm_end.why(self._resources, self._failure or self._primary.gave_up or exc)
            self._tell(events.Abandoned(because(cause), isinstance(cause, BEGUN_AGAIN)))
            self.ended.wait()
            raise cause from exc

    def unprotect(self, peer_is_dead: bool) -> None:
        """End protection in good order: the agent gives its standby up first, then output flows freely."""
        self._decider.carry_out("unprotect", events.Unprotect(peer_is_dead))

    def unprotect_orphan(self, peer_is_dead: bool) -> None:
        """Unprotect without protecting first: undo what a worker that died left. RefusedForSafety."""
        self._open()
        term, why = ask_for_word(self._spec, self._hello())
        self._decider.carry_out("unprotect", events.UnprotectOrphan(term, not why, peer_is_dead, why))

    def switchover(self) -> Switched:
        """Move the VM to the agent's host; how long it took, in ms. RefusedForSafety when it runs on here."""
        if self._primary.is_protected:
            self._proof.require_not_refused()
        began = time.monotonic()
        self._decider.carry_out("switchover", events.Switchover(self._epochs.stays))
        took_ms = 1000 * (time.monotonic() - began)
        return Switched(to=self._spec.peer.name, term=self._pipeline.term, took_ms=round(took_ms, 1))

    def status(self) -> VmStatus:
        """What is known of the VM."""
        return status_of(
            self._spec, self._pipeline, self._resources, self._metrics, self._gate_metrics(), self._agent.heartbeat()
        )

    def where(self) -> dict[str, object]:
        """What every line of this process's log says: the VM, its term, the newest epoch that is committed."""
        return {"vm": self._spec.vm, "term": self._pipeline.term, "epoch": self._pipeline.committed}

    # --- the initial sync ---

    def _open(self) -> tuple[Resources, VmSide]:
        self._resources = resources = Resources(self._spec)
        self._performer.vm = vm = VmSide(resources, self._epochs, self._mailbox)
        self._tell(events.Opened())
        return resources, vm

    def _protect(self) -> None:
        resources, vm = self._open()
        greeting = self._greet()
        self._agent.reads = resources.reads
        self._agent.use(greeting)
        self._require_resets(greeting.welcome)
        self._begin(greeting.welcome.term, resources)
        self._sync.expect(greeting.welcome, resources.replicas)
        self._agent.listen(greeting)
        self._sync.run(resources, self._over, self._agent.silence_ms)
        self._progress("first epoch", 0, 1, "epoch")
        resources.measure_pauses(self._metrics.paused)
        resources.clock.told = self._clock_runs_slow
        gates = [{"kind": resources.gate_kind, "tap": nic.tap, "mac": nic.mac} for nic in resources.domain.nics]
        self._tell(events.Copied({"gates": gates, "autostart": vm.autostart_off(self._journal.state)}))
        self._look_out(resources)
        self._await_first_ack()
        self._proof.wait(self._progress, self._over, self.ended)
        self._tell(events.Settled())
        if self._primary.is_protected:
            self._proof.told()

    def _require_resets(self, welcome: Welcome) -> None:
        """Commit protection needs an agent that breaks open transactions at a takeover. CannotProtect."""
        self._epochs.silence_s = welcome.silence_ms / 1000
        if self._spec.protection.release == "commit" and not welcome.resets:
            raise CannotProtect(
                f'agent {self._spec.peer.name} (RemusDB {welcome.version}) does not know release = "commit"',
                hint='upgrade RemusDB there, or set release = "all"',
            )

    def _look_out(self, resources: Resources) -> None:
        """Look for as long as epochs are cut."""

        def stays(still: bool) -> None:
            self._epochs.stays = still

        def state() -> RunState | None:
            """Not while the VM is stopped for a switchover."""
            found = None if self._primary.switching else run_state(resources.domain)
            return None if self._primary.switching else found

        lookout = Lookout(self._metrics.troubles, self._spec.protection.held_max_bytes, stays)
        lookout.start(self._over, state, self._gate_metrics, self._arbiter)

    def _greet(self) -> Greeting:
        """A new session with the agent; when another host owns the VM, this side is fenced."""
        try:
            return self._spec.agent.hello_again(lambda: self._hello(resume=False))
        except Fenced as exc:
            self._tell(events.FencedOff(exc.term, str(exc)))
            raise

    def _begin(self, term: int, resources: Resources) -> None:
        self._tell(events.Welcomed(term))
        if self._arbiter is not None and self._spec.arbiter is not None:
            claim = claim_session(self._arbiter, self._spec.vm, self._spec.host, term)
            self._tell(events.SessionClaimed(claim, f"{self._spec.arbiter.prefix}{self._spec.vm}"))
        self._tell(events.Begun(term, {"uuid": resources.domain.uuid}))

    def _await_first_ack(self) -> None:
        with self._decider.lock:
            self._decider.lock.wait_for(lambda: self._pipeline.committed > 0 or self._over.is_set(), FIRST_ACK_S)
        if self._primary.failed_in_copy or not self._pipeline.committed:
            why = words(self._metrics.why) if self._over.is_set() else f"no answer within {FIRST_ACK_S:g} s"
            raise PeerUnreachable(f"agent {self._spec.peer.name} did not take the first epoch: {why}")

    def _clock_runs_slow(self, why: str) -> None:
        """The clock was corrected at each cut, and cannot be any more: protection goes on."""
        self._journal.note("clock", Reason.of(Code.CLOCK_SLOW, why=why))

    def _hello(self, resume: bool = True) -> Hello:
        assert self._resources is not None
        told = self._sync.told if resume else []
        return self._writer.write(self._resources, self._journal.state, resume=resume, told=told)

    def _gate_metrics(self) -> GateMetrics:
        vm = self._performer.vm
        return GateMetrics() if vm is None or self.ended.is_set() else vm.gate_metrics()

    def _fail(self, exc: Exception) -> None:
        """Copying, cutting or shipping cannot go on. From any thread."""
        self._failure = self._failure or exc
        self._mailbox.post(events.Failed(because(exc), isinstance(exc, DevicesChanged)))


def because(exc: BaseException) -> Reason:
    """An error as the reason of a session's end."""
    return Reason.by(exc, Code.DEVICES_CHANGED if isinstance(exc, DevicesChanged) else Code.ERROR)
