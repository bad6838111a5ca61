# SPDX-License-Identifier: Apache-2.0
"""Does for every VM what is to be done without anybody asking (`reconcile.py` says what), each in a thread of its own.

Invariant: before a VM that this host protected is touched, or its output let go, the other host and the arbiter
were asked who owns it.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from remusdb.control import Progress
from remusdb.control.status import State
from remusdb.core.messages import Standing
from remusdb.core.ownership import Ownership, Verdict, go_solo
from remusdb.errors import CannotProtect, NoThread, PeerUnreachable, RemusError
from remusdb.host.managed_vm import ManagedVm
from remusdb.host.outside import Outside, Timing
from remusdb.host.reconcile import Action, disputed, hearsay, next_action, says_it_is_there, superseded
from remusdb.host.supervisor import Supervisor
from remusdb.log import VmLog
from remusdb.quietly import NOISY
from remusdb.reasons import Code, Reason
from remusdb.state import VmState
from remusdb.threads import spawn, vital

log = logging.getLogger(__name__)


@dataclass
class Backoff:
    """When to try again for one VM."""

    timing: Timing
    tries: int = 0
    due: float = 0.0
    action: Action = Action.NOTHING

    def ready(self, action: Action) -> bool:
        """Whether this action may be tried now; another action than last time starts again from the first."""
        if action is not self.action:
            self.action, self.tries, self.due = action, 0, 0.0
        return time.monotonic() >= self.due

    def wait(self, costly: bool) -> None:
        """It did not work: longer each time."""
        delays = self.timing.retry_s if costly else self.timing.ask_s
        self.due = time.monotonic() + delays[min(self.tries, len(delays) - 1)]
        self.tries += 1

    def worked(self) -> None:
        """The next time is a first one."""
        self.action = Action.NOTHING


class Reconciler:
    """One thread that looks, and one a VM that works."""

    def __init__(self, supervisor: Supervisor, outside: Outside) -> None:
        self._outside = outside
        self._supervisor = supervisor
        self._config = supervisor.config
        self._arbiter = outside.arbiter(supervisor.config.arbiter) if supervisor.config.arbiter else None
        self._backoff: dict[str, Backoff] = {}
        self._refusals: dict[str, Reason] = {}  # what was told last of a VM that cannot be protected
        self._stop = threading.Event()

    def start(self) -> None:
        """Adopt the workers that an earlier daemon left, then manage every VM."""
        for managed in self._supervisor.managed_vms():
            if self._supervisor.workers.adopt(managed):
                managed.log(log).info("its worker goes on")
                self._supervisor.tell(managed, "adopted", "protected", Reason.of(Code.ADOPTED))
        vital(self._look, name="reconciler")

    def stop(self) -> None:
        """Begin nothing more."""
        self._stop.set()

    def quarantine(self, managed: ManagedVm) -> None:
        """Destroy a fenced VM here, its disks kept or not. With `managed.work` held."""
        state = managed.state
        policy = self._config.for_vm(managed.vm).on_fenced
        host = self._config.host
        done = self._outside.quarantine(host.libvirt_uri, state, policy, host.image_dir, host.state_dir)
        why = Reason.of(Code.QUARANTINED, owner=state.owner, term=state.term, note=done.note)
        self._supervisor.store.update(
            managed.vm,
            quarantined=True,
            armed=False,
            gates=[],
            quarantined_disks=done.disks,
            quarantined_formats=done.formats,
            autostart=False,
            why=why,
        )
        managed.settle("fenced", why)
        self._supervisor.tell(managed, "quarantined", "fenced", why)

    def _look(self) -> None:
        while not self._stop.wait(self._outside.timing.look_s):
            try:
                for managed in self._supervisor.managed_vms():
                    self._consider(managed)
            except Exception:  # task boundary: this thread is the only one that looks
                log.exception("managing the VMs failed")

    def _consider(self, managed: ManagedVm) -> None:
        try:
            state = managed.state
        except RemusError as exc:
            return managed.settle("failed", Reason.by(exc))
        if managed.link is not None and not managed.busy and managed.work.acquire(blocking=False):
            try:  # its session is over, and it has said how
                managed.link.stop()
                managed.drop_link(managed.link)
            finally:
                managed.work.release()
        action = self._next(managed, state)
        backoff = self._backoff.setdefault(managed.vm, Backoff(self._outside.timing))
        if action is Action.NOTHING or not backoff.ready(action) or not managed.work.acquire(blocking=False):
            return
        try:
            spawn(self._act, managed, action, backoff, name=f"reconcile-{managed.vm}")
        except NoThread as exc:
            backoff.wait(False)
            managed.work.release()
            managed.log(log).warning("%s: not yet: %s", action.value, exc, extra=NOISY)

    def _next(self, managed: ManagedVm, state: VmState) -> Action:
        return next_action(state, managed.taken, self._config.for_vm(managed.vm).auto_reprotect)

    def _act(self, managed: ManagedVm, action: Action, backoff: Backoff) -> None:
        """Task boundary; gives `managed.work` back."""
        costly = worked = False
        try:
            if self._next(managed, managed.state) is not action:
                return  # since it was looked at, somebody else had `work`
            if action is Action.QUARANTINE:
                self.quarantine(managed)
            elif self._ours_to_protect(managed):
                costly = True
                self._supervisor.begin(managed, managed.state.peer, _unheard, asked=False)
                worked = True
                self._refusals.pop(managed.vm, None)
        except CannotProtect as exc:
            costly = True
            self._refused(managed, exc)
        except RemusError as exc:
            managed.log(log).warning("%s: not yet: %s", action.value, exc)
        except Exception:
            managed.log(log).exception("%s failed", action.value)
        finally:
            backoff.worked() if worked else backoff.wait(costly)
            managed.work.release()

    def _ours_to_protect(self, managed: ManagedVm) -> bool:
        """Ask who owns the VM. False: there is nothing to protect, or not now; what could be done is done."""
        state = managed.state
        if state.peer not in self._config.peers:
            raise CannotProtect(f"peer `{state.peer}` is not in host.toml")
        standing, silent = self._standing(managed, state.peer)
        other = superseded(self._config.host.name, state, standing, self._ownership(managed.vm))
        if other is None and (named := hearsay(self._config.host.name, state, standing)):
            other = self._confirmed(managed, named)
            if other is None:
                return self._in_doubt(managed, Reason.of(Code.OWNER_UNCONFIRMED, peer=state.peer, owner=named))
        if other is not None:
            self._supervisor.fence(managed, other.owner, other.term)
            self.quarantine(managed)
        elif standing is not None and disputed(state, standing):
            self._in_doubt(managed, Reason.of(Code.OWNER_DISPUTED, peer=state.peer, term=standing.term))
        elif not self._supervisor.inspection.vms().get(managed.vm, False):
            self._off(managed, standing)
        elif silent is not None:
            self._without_peer(managed, silent)
        elif standing is not None and not standing.owner and standing.term > state.term:
            managed.settle("held" if state.armed else "solo", Reason.of(Code.PEER_DECIDING, peer=state.peer))
        else:
            if not state.armed:  # a VM with the gate still in has passed already
                self._supervisor.preflight(managed.vm, state.peer)
            again = Reason.of(Code.PROTECTED_AGAIN, peer=state.peer)
            self._supervisor.tell(managed, "resync", managed.status().state, again)
            return True
        return False

    def _refused(self, managed: ManagedVm, exc: CannotProtect) -> None:
        """The VM is not what can be protected any more: told once, tried again until it is, or an unprotect."""
        managed.log(log).warning("not yet: %s", exc)
        state = managed.state
        if state.armed:
            return
        why = Reason.of(Code.CANNOT_PROTECT, why=exc, hint=exc.hint, since=state.why or state.reason)
        was = managed.status().state
        managed.settle("solo" if state.wanted else "failed", why)
        if self._refusals.get(managed.vm) != why:
            self._refusals[managed.vm] = why
            self._supervisor.tell(managed, "failed", was, why)

    def _confirmed(self, managed: ManagedVm, named: str) -> Ownership | None:
        """Host `named` was said to own the VM: does it say so itself?"""
        state = managed.state
        if not state.armed or named not in self._config.peers:
            return None
        standing, _silent = self._standing(managed, named)
        if standing is None or standing.term <= state.term or not says_it_is_there(standing, named, state):
            return None
        return Ownership(named, standing.term)

    def _in_doubt(self, managed: ManagedVm, why: Reason) -> bool:
        """Nothing is begun, started or destroyed: an operator decides."""
        managed.settle("held" if managed.state.armed else "solo", why)
        return False

    def _standing(self, managed: ManagedVm, host: str) -> tuple[Standing | None, PeerUnreachable | None]:
        spec = self._supervisor.workers.spec(managed, host)
        try:
            return self._outside.ask(spec, managed.state.term), None
        except PeerUnreachable as exc:
            return None, exc

    def _ownership(self, vm: str) -> Ownership | None:
        try:
            return self._arbiter.read(vm) if self._arbiter else None
        except PeerUnreachable as exc:
            VmLog(log, vm).warning("the arbiter: %s", exc)
            return None

    def _off(self, managed: ManagedVm, standing: Standing | None) -> None:
        """The VM does not run. Where the other host surely does not run it either, it is nobody's but ours."""
        state = managed.state
        if standing is None or standing.role in ("standby", "promoting"):
            shown: State = "held" if state.armed else "solo"
            return managed.settle(shown, Reason.of(Code.OFF_UNDECIDED, peer=state.peer))
        why = Reason.of(Code.OFF, peer=state.peer)
        self._supervisor.store.update(managed.vm, role="solo", armed=False, gates=[], why=why)
        managed.settle("solo", why)
        if state.autostart:  # it would have started with this host, had remusdb not taken that over
            self._supervisor.inspection.start(managed.vm)

    def _without_peer(self, managed: ManagedVm, silent: PeerUnreachable) -> None:
        """The VM runs, its worker is gone, the backup is silent: only the arbiter can let it speak."""
        state, vm = managed.state, managed.vm
        if not state.armed:
            return managed.settle("solo", Reason.of(Code.PEER_UNREACHABLE, peer=state.peer, why=silent))
        # An interface that it was given meanwhile must not speak either.
        self._outside.shut_others(vm, [gate["tap"] for gate in state.gates])
        solo = self._arbiter is not None and self._config.for_vm(vm).on_backup_loss != "hold"
        if not solo or self._arbiter is None:
            return managed.settle("held", Reason.of(Code.PEER_UNREACHABLE_HELD, peer=state.peer, why=silent))
        claim = self._arbiter.claim(vm, go_solo(self._config.host.name, state.term))
        if claim.verdict is Verdict.WON:
            self._supervisor.store.update(vm, term=state.term + 1)
            self._supervisor.free(managed, Reason.of(Code.ALONE, why=silent))
        elif claim.verdict is Verdict.LOST:
            owned = {"owner": claim.record.owner or "nobody", "term": claim.record.term} if claim.record else {}
            managed.settle("held", Reason.of(Code.ARBITER_REFUSES, peer=state.peer, why=silent, **owned))
        else:
            managed.settle("held", Reason.of(Code.ARBITER_SILENT, peer=state.peer, why=silent))


def _unheard(_progress: Progress) -> None:
    """Progress that nobody asked for."""
