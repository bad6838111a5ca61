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
from remusdb.host.managed_vm import VmRecord
from remusdb.host.outside import Outside, Timing
from remusdb.host.reconcile import Action, disputed, hearsay, next_action, says_it_is_there, superseded
from remusdb.host.supervisor import Keeper
from remusdb.log import VmLog
from remusdb.quietly import NOISY
from remusdb.reasons import Code, Reason
from remusdb.state import VmState
from remusdb.threads import spawn, vital

log = logging.getLogger(__name__)


@dataclass
class Patience:
    """When to try again for one VM."""

    timing: Timing
    tries: int = 0
    due: float = 0.0
    action: Action = Action.NOTHING

    def ready(self, action: Action) -> bool:
        """Whether this action may be tried now; another action than last time starts anew."""
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


class Tender:
    """One thread that looks, and one a VM that works."""

    def __init__(self, keeper: Keeper, outside: Outside) -> None:
        self._outside = outside
        self._keeper = keeper
        self._config = keeper.config
        self._arbiter = outside.arbiter(keeper.config.arbiter) if keeper.config.arbiter else None
        self._patience: dict[str, Patience] = {}
        self._refusals: dict[str, Reason] = {}  # what was told last of a VM that cannot be protected
        self._stop = threading.Event()

    def start(self) -> None:
        """Adopt the workers that an earlier daemon left, then look after every VM."""
        for record in self._keeper.records():
            if self._keeper.workers.adopt(record):
                record.log(log).info("its worker goes on")
                self._keeper.tell(record, "adopted", "protected", Reason.of(Code.ADOPTED))
        vital(self._look, name="tender")

    def stop(self) -> None:
        """Begin nothing more."""
        self._stop.set()

    def put_away(self, record: VmRecord) -> None:
        """Destroy a fenced VM here, its disks kept or not. With `record.work` held."""
        state = record.state
        policy = self._config.for_vm(record.vm).on_fenced
        host = self._config.host
        done = self._outside.put_away(host.libvirt_uri, state, policy, host.image_dir, host.state_dir)
        why = Reason.of(Code.PUT_AWAY, owner=state.owner, term=state.term, note=done.note)
        self._keeper.store.update(
            record.vm,
            put_away=True,
            armed=False,
            gates=[],
            kept=done.disks,
            kept_formats=done.formats,
            autostart=False,
            why=why,
        )
        record.settle("fenced", why)
        self._keeper.tell(record, "kept", "fenced", why)

    def _look(self) -> None:
        while not self._stop.wait(self._outside.timing.look_s):
            try:
                for record in self._keeper.records():
                    self._consider(record)
            except Exception:  # task boundary: this thread is the only one that looks
                log.exception("looking after the VMs failed")

    def _consider(self, record: VmRecord) -> None:
        try:
            state = record.state
        except RemusError as exc:
            return record.settle("failed", Reason.by(exc))
        if record.link is not None and not record.busy and record.work.acquire(blocking=False):
            try:  # its session is over, and it has said how
                record.link.stop()
                record.drop_link(record.link)
            finally:
                record.work.release()
        action = self._next(record, state)
        patience = self._patience.setdefault(record.vm, Patience(self._outside.timing))
        if action is Action.NOTHING or not patience.ready(action) or not record.work.acquire(blocking=False):
            return
        try:
            spawn(self._act, record, action, patience, name=f"tend-{record.vm}")
        except NoThread as exc:
            patience.wait(False)
            record.work.release()
            record.log(log).warning("%s: not yet: %s", action.value, exc, extra=NOISY)

    def _next(self, record: VmRecord, state: VmState) -> Action:
        return next_action(state, record.taken, self._config.for_vm(record.vm).auto_reprotect)

    def _act(self, record: VmRecord, action: Action, patience: Patience) -> None:
        """Task boundary; gives `record.work` back."""
        costly = worked = False
        try:
            if self._next(record, record.state) is not action:
                return  # since it was looked at, somebody else had `work`
            if action is Action.PUT_AWAY:
                self.put_away(record)
            elif self._ours_to_protect(record):
                costly = True
                self._keeper.begin(record, record.state.peer, _unheard, asked=False)
                worked = True
                self._refusals.pop(record.vm, None)
        except CannotProtect as exc:
            costly = True
            self._refused(record, exc)
        except RemusError as exc:
            record.log(log).warning("%s: not yet: %s", action.value, exc)
        except Exception:
            record.log(log).exception("%s failed", action.value)
        finally:
            patience.worked() if worked else patience.wait(costly)
            record.work.release()

    def _ours_to_protect(self, record: VmRecord) -> bool:
        """Ask who owns the VM. False: there is nothing to protect, or not now; what could be done is done."""
        state = record.state
        if state.peer not in self._config.peers:
            raise CannotProtect(f"peer `{state.peer}` is not in host.toml")
        standing, silent = self._standing(record, state.peer)
        other = superseded(self._config.host.name, state, standing, self._record(record.vm))
        if other is None and (named := hearsay(self._config.host.name, state, standing)):
            other = self._confirmed(record, named)
            if other is None:
                return self._in_doubt(record, Reason.of(Code.OWNER_UNCONFIRMED, peer=state.peer, owner=named))
        if other is not None:
            self._keeper.fence(record, other.owner, other.term)
            self.put_away(record)
        elif standing is not None and disputed(state, standing):
            self._in_doubt(record, Reason.of(Code.OWNER_DISPUTED, peer=state.peer, term=standing.term))
        elif not self._keeper.inspection.vms().get(record.vm, False):
            self._off(record, standing)
        elif silent is not None:
            self._without_peer(record, silent)
        elif standing is not None and not standing.owner and standing.term > state.term:
            record.settle("held" if state.armed else "solo", Reason.of(Code.PEER_DECIDING, peer=state.peer))
        else:
            if not state.armed:  # a VM with the gate still in has passed already
                self._keeper.preflight(record.vm, state.peer)
            again = Reason.of(Code.PROTECTED_AGAIN, peer=state.peer)
            self._keeper.tell(record, "resync", record.status().state, again)
            return True
        return False

    def _refused(self, record: VmRecord, exc: CannotProtect) -> None:
        """The VM is not what can be protected any more: told once, tried again until it is, or an unprotect."""
        record.log(log).warning("not yet: %s", exc)
        state = record.state
        if state.armed:
            return
        why = Reason.of(Code.CANNOT_PROTECT, why=exc, hint=exc.hint, since=state.why or state.reason)
        was = record.status().state
        record.settle("solo" if state.wanted else "failed", why)
        if self._refusals.get(record.vm) != why:
            self._refusals[record.vm] = why
            self._keeper.tell(record, "failed", was, why)

    def _confirmed(self, record: VmRecord, named: str) -> Ownership | None:
        """Host `named` was said to own the VM: does it say so itself?"""
        state = record.state
        if not state.armed or named not in self._config.peers:
            return None
        standing, _silent = self._standing(record, named)
        if standing is None or standing.term <= state.term or not says_it_is_there(standing, named, state):
            return None
        return Ownership(named, standing.term)

    def _in_doubt(self, record: VmRecord, why: Reason) -> bool:
        """Nothing is begun, started or destroyed: an operator decides."""
        record.settle("held" if record.state.armed else "solo", why)
        return False

    def _standing(self, record: VmRecord, host: str) -> tuple[Standing | None, PeerUnreachable | None]:
        order = self._keeper.workers.order(record, host)
        try:
            return self._outside.ask(order, record.state.term), None
        except PeerUnreachable as exc:
            return None, exc

    def _record(self, vm: str) -> Ownership | None:
        try:
            return self._arbiter.read(vm) if self._arbiter else None
        except PeerUnreachable as exc:
            VmLog(log, vm).warning("the arbiter: %s", exc)
            return None

    def _off(self, record: VmRecord, standing: Standing | None) -> None:
        """The VM does not run. Where the other host surely does not run it either, it is nobody's but ours."""
        state = record.state
        if standing is None or standing.role in ("standby", "promoting"):
            shown: State = "held" if state.armed else "solo"
            return record.settle(shown, Reason.of(Code.OFF_UNDECIDED, peer=state.peer))
        why = Reason.of(Code.OFF, peer=state.peer)
        self._keeper.store.update(record.vm, role="solo", armed=False, gates=[], why=why)
        record.settle("solo", why)
        if state.autostart:  # it would have started with this host, had remusdb not taken that over
            self._keeper.inspection.start(record.vm)

    def _without_peer(self, record: VmRecord, silent: PeerUnreachable) -> None:
        """The VM runs, its worker is gone, the backup is silent: only the arbiter can let it speak."""
        state, vm = record.state, record.vm
        if not state.armed:
            return record.settle("solo", Reason.of(Code.PEER_UNREACHABLE, peer=state.peer, why=silent))
        # An interface that it was given meanwhile must not speak either.
        self._outside.shut_others(vm, [gate["tap"] for gate in state.gates])
        solo = self._arbiter is not None and self._config.for_vm(vm).on_backup_loss != "hold"
        if not solo or self._arbiter is None:
            return record.settle("held", Reason.of(Code.PEER_UNREACHABLE_HELD, peer=state.peer, why=silent))
        claim = self._arbiter.claim(vm, go_solo(self._config.host.name, state.term))
        if claim.verdict is Verdict.WON:
            self._keeper.store.update(vm, term=state.term + 1)
            self._keeper.free(record, Reason.of(Code.ALONE, why=silent))
        elif claim.verdict is Verdict.LOST:
            owned = {"owner": claim.record.owner or "nobody", "term": claim.record.term} if claim.record else {}
            record.settle("held", Reason.of(Code.ARBITER_REFUSES, peer=state.peer, why=silent, **owned))
        else:
            record.settle("held", Reason.of(Code.ARBITER_SILENT, peer=state.peer, why=silent))


def _unheard(_progress: Progress) -> None:
    """Progress that nobody asked for."""
