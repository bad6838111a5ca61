# SPDX-License-Identifier: Apache-2.0
"""Does what core/backup.py decides about one VM where that takes its time, and tells what came of it as an event.

Nobody's turn is held meanwhile. Invariant: whatever fails is an event, so nothing that was begun is left in the middle.
"""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path

from remusdb.core import backup_effects as do
from remusdb.core import backup_events as event
from remusdb.core.messages import Notice, Proof, pack
from remusdb.core.wire import FrameType
from remusdb.errors import PeerUnreachable, RemusError
from remusdb.quietly import NOISY
from remusdb.reasons import Reason
from remusdb_agents.backup import takeover
from remusdb_agents.backup.desk import Desk
from remusdb_agents.backup.disks.base_copy import QuarantinedDisk
from remusdb_agents.backup.forgetting import is_there
from remusdb_agents.backup.hello_checks import look_up, quarantine, refusal
from remusdb_agents.backup.holding import Holding
from remusdb_agents.backup.inbox import WholeEpoch
from remusdb_agents.backup.proving import Proving
from remusdb_agents.backup.standby.machine import remove_leftover

log = logging.getLogger(__name__)


class Errands:
    """One VM's."""

    def __init__(self, here: Holding, desk: Desk) -> None:
        self._here, self._desk = here, desk
        self._libvirt_uri = here.context.config.agent.libvirt_uri
        self.proving = Proving(here.vm, here.context.name, self._proves, self._unproven, self._send_proof)

    def begin(self, effect: do.Begun) -> event.Event | None:
        """Do it; what came of it, if that is known when this returns."""
        here, context, vm = self._here, self._here.context, self._here.vm
        match effect:
            case do.Send(line, kind, term, epoch, reason):
                payload = pack(Notice(reason)) if kind is FrameType.RENOUNCE else b""
                if kind is FrameType.ACK:
                    payload = here.references.word(here.core.now.standby.applied)
                self._send(line, kind, term, epoch, payload)
            case do.AwaitRoom(line):
                if here.machine is not None:
                    with here.hearing.not_reading():
                        here.machine.applier.await_room(lambda: line == here.core.now.line)
            case do.Prove(term):
                if here.machine is not None:
                    self.proving.begin(here.machine.prover, term)
            case do.LookUp(hailed):
                return look_up(context, hailed)
            case do.YieldVm(hailed):
                return quarantine(context, hailed)
            case do.StartStandby():
                return self._start(effect)
            case do.CloseStandby(_, keep_images):
                return self._close(keep_images)
            case do.Decline(line, serial, term, why):
                self._here.log(log).warning("switchover declined: %s", why, extra=NOISY)
                self._send(line, FrameType.DECLINE, term, 0, pack(Notice(why)))
                return event.Declined(serial, why)
            case do.LookIfThere():
                return self._look_if_there()
            case do.Sweep():
                self._desk.apart(self._sweep, f"sweep-{vm}")
            case do.HandBack(owner, term):
                self._desk.apart(lambda: takeover.hand_back(context, vm, owner, term), f"hand-back-{vm}")
            case do.LookIfRuns():
                self._desk.apart(self._look_if_runs, f"follow-up-{vm}")
            case _:
                return self._step(effect)
        return None

    # --- a takeover ---

    def _step(self, effect: do.Begun) -> event.Event:
        """Task boundary: whatever fails, it is not left in the middle."""
        try:
            return self._taken(effect)
        except Exception as exc:
            trace = not isinstance(exc, RemusError)
            self._here.log(log).error("a takeover failed: %s", exc, exc_info=trace)
            return event.TakeoverFailed(exc, effect.asked if isinstance(effect, do.ReadArbiter) else None)

    def _taken(self, effect: do.Begun) -> event.Event:
        here, context, vm = self._here, self._here.context, self._here.vm
        if isinstance(effect, do.ReadArbiter):
            return takeover.read_arbiter(context, vm, effect.asked, effect.owner, effect.term)
        if isinstance(effect, do.Claim):
            return takeover.win(context, vm, effect.owner, effect.term, self._arbiter_waits)
        machine = here.machine
        assert machine is not None, effect
        match effect:
            case do.Drain():
                takeover.drain(machine, vm)
                return event.Drained()
            case do.Resume(stays):
                return takeover.resume(machine, vm, stays)
            case do.ColdStart(stays, cold):
                return takeover.cold_start(machine, stays, cold)
            case do.Announce(addresses, at_ns, how):
                machine.announce(list(addresses))
                here.machine = None
                return event.Announced(at_ns, how)
        raise AssertionError(effect)

    def _arbiter_waits(self, problem: str) -> None:
        self._desk.post(event.ArbiterWaits(problem))

    def _look_if_runs(self) -> None:
        runs = takeover.runs(self._libvirt_uri, self._here.vm)
        self._desk.post(event.Found(runs, self._here.state.resumed_at_ns or time.time_ns()))

    # --- the standby ---

    def _start(self, effect: do.StartStandby) -> event.Event:
        here, term = self._here, effect.term
        here.seeding.begin()
        here.references.begin()
        formats = here.state.quarantined_formats
        quarantined = {
            target: QuarantinedDisk(Path(path), formats.get(target, ""))
            for target, path in here.state.quarantined_disks.items()
        }
        try:
            make = here.context.machine
            here.machine = make(
                here.context, effect.hello, self._moved, lambda exc: self._broken(exc, term), quarantined
            )
        except Exception as exc:  # task boundary: whatever it was, it is answered
            return event.NotStarted(effect.line, str(exc), refusal(exc, here.vm, here.context.name))
        return event.Started(effect.line)

    def _close(self, keep_images: bool) -> event.Gone:
        machine, self._here.machine = self._here.machine, None
        try:
            if machine is not None:
                machine.close(keep_images=keep_images)
        except Exception:  # task boundary: the next session takes away what is left
            self._here.log(log).exception("its standby cannot be removed")
        return event.Gone()

    def _sweep(self) -> None:
        """Take away the standby that an agent which died left behind."""
        try:
            remove_leftover(self._libvirt_uri, self._here.vm)
        except Exception as exc:  # task boundary: the next session tries again
            self._here.log(log).warning("its old standby is still there: %s", exc)
        self._desk.post(event.Gone())

    def _look_if_there(self) -> event.LookedIfThere:
        try:
            return event.LookedIfThere(is_there(self._libvirt_uri, self._here.vm))
        except Exception as exc:  # task boundary: an operator waits for it
            return event.LookedIfThere(False, exc)

    def _moved(self, whole: WholeEpoch) -> None:
        machine = self._here.machine
        crowded = machine is not None and machine.applier.crowded
        self._desk.post(event.Applied(whole.term, whole.epoch, crowded))

    def _broken(self, exc: Exception, term: int) -> None:
        """The replica is torn, and the primary must know before anything else happens."""
        self._here.log(log).error("replica broken: %s", exc)
        self._desk.post(event.Broken(term, str(exc)))

    # --- the primary ---

    def _send(self, line: int, kind: FrameType, term: int, epoch: int, payload: bytes) -> None:
        stream = self._here.lines.stream(line)
        if stream is not None:
            with contextlib.suppress(PeerUnreachable):  # whoever receives on it notices
                stream.send(kind, term, epoch, payload)

    def _send_proof(self, proof: Proof) -> None:
        stream = self._here.hearing.stream
        if stream is not None:
            with contextlib.suppress(PeerUnreachable):
                stream.send(FrameType.PROOF, self._here.core.now.session_term, proof.epoch, pack(proof))

    def _unproven(self, why: Reason) -> None:
        self._here.tell("unproven", self._here.core.phase.shown, why)

    def _proves(self, term: int) -> bool:
        """Whether a proof of this session's standby is of the one that would be resumed."""
        phase = self._here.core.phase
        return term == self._here.core.now.session_term and phase.holds and not phase.owns
