# SPDX-License-Identifier: Apache-2.0
"""Protecting, unprotecting and moving VMs by worker processes: what an operator asks for.

Owns every VM that this host protects or protected. Invariant: no path through here lets a VM's output go;
only a worker does, and only when it was told to. What happens without anybody asking is in `reconciler.py`.
"""

from __future__ import annotations

import logging
import threading
import time

from remusdb.config import HostConfig
from remusdb.control import ProgressFn
from remusdb.control.api import Switched
from remusdb.control.status import State, VmStatus
from remusdb.core.roles import OWNING
from remusdb.core.terms import reached
from remusdb.deadline import Deadline, poll_until
from remusdb.errors import ConfigError, NotProtected, RefusedForSafety, RemusError, VmError
from remusdb.history import Event, EventName, History
from remusdb.host.libvirt_view import Inspection
from remusdb.host.managed_vm import ManagedVm
from remusdb.host.outside import Outside
from remusdb.host.worker_process import WorkerLink
from remusdb.host.workers import Workers
from remusdb.preflight.decide import PEER, require
from remusdb.reasons import Code, Reason
from remusdb.state import StateStore
from remusdb.wording import hint, words
from remusdb.worker.spec import End, Move, Start

log = logging.getLogger(__name__)

UNPROTECT_TIMEOUT_S = 120.0
SWITCH_TIMEOUT_S = 60.0
WAIT_S = 300.0  # for a protection that is under way already
LOOK_S = 0.1
UNDER_WAY = ("seeding", "protected", "held")


class Supervisor:
    """All VMs of this host that are or were protected."""

    def __init__(
        self,
        config: HostConfig,
        inspection: Inspection,
        history: History,
        outside: Outside,
    ) -> None:
        self.config = config
        self.inspection = inspection
        self.workers = Workers(config, outside)
        self.store = StateStore(config.host.state_dir)
        self._history = history
        self._managed: dict[str, ManagedVm] = {}
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Let go of the workers: they go on, and the next daemon adopts them."""
        self.workers.stopping.set()
        for managed in self.managed_vms():
            if managed.link is not None:
                managed.link.leave()

    def managed_vms(self) -> list[ManagedVm]:
        """Every VM of which something is known, also by its file alone."""
        for vm in self.store.names():
            self.managed(vm)
        with self._lock:
            return [self._managed[vm] for vm in sorted(self._managed)]

    def managed(self, vm: str) -> ManagedVm:
        """One VM, made if it is not there."""
        with self._lock:
            if vm not in self._managed:
                self._managed[vm] = ManagedVm(vm, self.store)
            return self._managed[vm]

    def statuses(self) -> dict[str, VmStatus]:
        """The status of every managed VM."""
        return {managed.vm: managed.status() for managed in self.managed_vms()}

    def protect(self, vm: str, peer: str, progress: ProgressFn) -> VmStatus:
        """Protect a VM; its status once it is protected. One that is being protected to there is waited for."""
        self.require_peer(peer)
        managed = self.managed(vm)
        managed.refuse_fenced()
        if managed.state.armed and managed.state.peer != peer:
            raise RefusedForSafety(
                f"VM {vm} was protected to {managed.state.peer}, which may have taken it over",
                hint=f"protect it to {managed.state.peer} again, or end that first: remusdb unprotect {vm}",
            )
        if managed.busy and managed.state.peer == peer:
            return self._wait(managed)
        with managed.work:
            return self.begin(managed, peer, progress)

    def reprotect(self, vm: str, peer: str, progress: ProgressFn) -> VmStatus:
        """Protect a VM that this host took over, or that lost its backup."""
        state = self.managed(vm).state
        if state.role not in OWNING:
            raise NotProtected(
                f"VM {vm} was not taken over here, and did not lose a backup ({state.role})",
                hint=f"for the first time: remusdb protect {vm} --to {peer}",
            )
        return self.protect(vm, peer, progress)

    def begin(self, managed: ManagedVm, peer: str, progress: ProgressFn, *, asked: bool = True) -> VmStatus:
        """Start a worker that protects the VM; its status once it is protected. With `managed.work` held.

        `asked`: by an operator, who gets a refusal; else it has passed `preflight`, and what can be had is better than
        nothing.
        """
        link = self.workers.link(managed, peer)
        try:
            self.require_peer(peer)  # here as well: a peer that was saved may be gone from the file
            if not managed.state.armed and asked:  # a VM with the gate still in has passed already
                self.preflight(managed.vm, peer)
            link.spawn()
            told = link.request(Start(spec=self.workers.spec(managed, peer, asked)), progress)
        except RemusError as exc:
            self._failed(managed, link, exc)
            raise
        if told.state != "protected":  # the other host, or the VM, was lost in its first moments
            raise RemusError(f"VM {managed.vm} is {told.state}: {told.reason}")
        managed.log(log).info("protected to %s", peer)
        return managed.status()

    def unprotect(self, vm: str, peer_is_dead: bool, progress: ProgressFn) -> str:
        """End a VM's protection; what is worth a word about how it ended."""
        managed, why = self.managed(vm), Reason.of(Code.UNPROTECT_ASKED)
        with managed.leaving():  # or the reconciler takes a worker that ends for one that was lost, and begins the next
            if managed.busy is False and managed.state.role not in ("protected", "solo", "seeding", "fenced"):
                raise NotProtected(f"VM {vm} is not protected")
            note = self._end_worker(managed, peer_is_dead, progress)
            with managed.work:  # whoever began before us has done with the state file
                if managed.state.role != "none":
                    self.store.update(vm, role="none", wanted=False, armed=False, gates=[], why=why)
                managed.settle("unprotected", why)
        managed.log(log).info("unprotected")
        return note

    def _end_worker(self, managed: ManagedVm, peer_is_dead: bool, progress: ProgressFn) -> str:
        """Have the VM's wiring taken out, by the worker it has or by one of its own; a note when it was not."""
        link, note = managed.link, ""
        try:
            if link is not None and managed.busy:
                link.request(End(peer_is_dead=peer_is_dead), progress, UNPROTECT_TIMEOUT_S)
            elif managed.state.role == "protected":
                with managed.work:
                    link = self._take_out(managed, peer_is_dead, progress, leaving=True)
        except RemusError as exc:
            if not self._is_off(managed.vm):
                raise
            # No VM, no output: whatever runs elsewhere, nothing of it can be heard from here.
            note = f"{managed.vm} does not run here, so only its protection here was ended ({exc})"
            managed.log(log).warning("%s", note)
        if link is not None:
            link.stop()
            managed.drop_link(link)
        return note

    def switchover(self, vm: str, progress: ProgressFn) -> Switched:
        """Move a protected VM to its backup: what the worker measured."""
        managed = self.managed(vm)
        managed.refuse_fenced()
        link = managed.link
        if link is None or not managed.busy:
            raise NotProtected(
                f"VM {vm} is not protected: there is nowhere to move it to",
                hint=f"protect it first: remusdb protect {vm} --to HOST",
            )
        return link.request(Move(), progress, SWITCH_TIMEOUT_S)

    def fence(self, managed: ManagedVm, owner: str, term: int) -> None:
        """Another host owns the VM: durable first, then the worker's end. With `managed.work` held."""
        was = managed.status().state
        why = Reason.of(Code.OWNED_ELSEWHERE, owner=owner, term=term)
        term = reached(managed.state.term, term)
        self.store.update(managed.vm, role="fenced", owner=owner, term=term, why=why, quarantined=False)
        link = managed.link
        if link is not None:
            link.kill()  # the gate stays as it is: shut
            link.stop()
            managed.drop_link(link)
        managed.settle("fenced", why)
        self.tell(managed, "fenced", was, why)

    def free(self, managed: ManagedVm, why: Reason) -> None:
        """Nobody can take the VM over any more: take out what a dead worker left, so that it speaks. `work` is held."""
        link = self._take_out(managed, True, lambda _progress: None)
        link.stop()
        managed.drop_link(link)
        self.store.update(managed.vm, role="solo", wanted=True, armed=False, gates=[], why=why)
        managed.settle("solo", why)
        self.tell(managed, "solo", "held", why)

    def tell(self, managed: ManagedVm, event: EventName, was: str, why: Reason) -> None:
        """Into the history, and to the hooks."""
        status = managed.status()
        self._history.record(
            Event(
                vm=managed.vm,
                at_ns=time.time_ns(),
                host=self.config.host.name,
                by="host",
                event=event,
                was=was,
                now=status.state,
                reason=words(why),
                why=why,
                hint=hint(why, managed.vm),
                term=status.term,
                epoch=status.committed or None,
                heard_ms_ago=None,
                peer=status.peer or "",
            )
        )

    def require_peer(self, peer: str) -> None:
        """Refuse a peer that host.toml does not name."""
        if peer not in self.config.peers:
            names = ", ".join(sorted(self.config.peers)) or "none"
            raise ConfigError(f"unknown peer `{peer}`", hint=f"peers in host.toml: {names}")

    def _wait(self, managed: ManagedVm) -> VmStatus:
        """For a protection that was begun by somebody else."""

        def settled() -> VmStatus | None:
            status = managed.status()
            over = status.state == "protected" or not managed.busy or status.state not in UNDER_WAY
            return status if over else None

        status = poll_until(settled, Deadline.after(WAIT_S), LOOK_S) or managed.status()
        if status.state == "protected":
            return status
        raise RemusError(f"VM {managed.vm} is {status.state}: {status.reason}")

    def _take_out(
        self, managed: ManagedVm, peer_is_dead: bool, progress: ProgressFn, *, leaving: bool = False
    ) -> WorkerLink:
        """An earlier worker left wiring behind: a new one takes it out, without protecting first."""
        peer = managed.state.peer
        self.require_peer(peer)
        link = self.workers.link(managed, peer, leaving=leaving)
        end = End(peer_is_dead=peer_is_dead, spec=self.workers.spec(managed, peer))
        try:
            link.spawn()
            link.request(end, progress, UNPROTECT_TIMEOUT_S)
        except RemusError as exc:
            self._failed(managed, link, exc)
            raise
        return link

    def _is_off(self, vm: str) -> bool:
        """Whether libvirt is sure that the VM does not run."""
        try:
            return not self.inspection.vms().get(vm, False)
        except VmError:
            return False

    def preflight(self, vm: str, peer: str) -> None:
        """CannotProtect with all that keeps this VM from being protected to there.

        An agent that does not answer is the worker's to tell, and to try again.
        """
        require(vm, [check for check in self.inspection.check(vm, peer) if check.name != PEER])

    def _failed(self, managed: ManagedVm, link: WorkerLink, exc: RemusError) -> None:
        if link.waited_for:
            return  # an unprotect came in while `start` was under way: the worker is still wanted
        state = managed.state
        shown: State = (
            "fenced" if state.role == "fenced" else "held" if state.armed else "solo" if state.wanted else "failed"
        )
        managed.settle(shown, Reason.by(exc, Code.ERROR_HELD if shown == "held" else Code.ERROR))
        if shown == "solo":
            again = f"{managed.vm} runs on without a backup; retrying, until: remusdb unprotect {managed.vm}"
            exc.hint = f"{exc.hint}; {again}" if exc.hint else again
        link.stop()
        managed.drop_link(link)
