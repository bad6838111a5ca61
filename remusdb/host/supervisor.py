# SPDX-License-Identifier: Apache-2.0
"""Protecting, unprotecting and moving VMs by worker processes: what an operator asks for.

Owns the records of all VMs this host protects or protected. Invariant: no path through here lets a VM's output go;
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
from remusdb.host.managed_vm import VmRecord
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


class Keeper:
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
        self._records: dict[str, VmRecord] = {}
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Let go of the workers: they go on, and the next daemon adopts them."""
        self.workers.stopping.set()
        for record in self.records():
            if record.link is not None:
                record.link.leave()

    def records(self) -> list[VmRecord]:
        """Every VM of which something is known, also by its file alone."""
        for vm in self.store.names():
            self.record(vm)
        with self._lock:
            return [self._records[vm] for vm in sorted(self._records)]

    def record(self, vm: str) -> VmRecord:
        """The record of one VM, made if it is not there."""
        with self._lock:
            if vm not in self._records:
                self._records[vm] = VmRecord(vm, self.store)
            return self._records[vm]

    def statuses(self) -> dict[str, VmStatus]:
        """The status of every VM that has a record."""
        return {record.vm: record.status() for record in self.records()}

    def protect(self, vm: str, peer: str, progress: ProgressFn) -> VmStatus:
        """Protect a VM; its status once it is protected. One that is being protected to there is waited for."""
        self.require_peer(peer)
        record = self.record(vm)
        record.refuse_fenced()
        if record.state.armed and record.state.peer != peer:
            raise RefusedForSafety(
                f"VM {vm} was protected to {record.state.peer}, which may have taken it over",
                hint=f"protect it to {record.state.peer} again, or end that first: remusdb unprotect {vm}",
            )
        if record.busy and record.state.peer == peer:
            return self._wait(record)
        with record.work:
            return self.begin(record, peer, progress)

    def reprotect(self, vm: str, peer: str, progress: ProgressFn) -> VmStatus:
        """Protect a VM that this host took over, or that lost its backup."""
        state = self.record(vm).state
        if state.role not in OWNING:
            raise NotProtected(
                f"VM {vm} was not taken over here, and did not lose a backup ({state.role})",
                hint=f"for the first time: remusdb protect {vm} --to {peer}",
            )
        return self.protect(vm, peer, progress)

    def begin(self, record: VmRecord, peer: str, progress: ProgressFn, *, asked: bool = True) -> VmStatus:
        """Start a worker that protects the VM; its status once it is protected. With `record.work` held.

        `asked`: by an operator, who gets a refusal; else it has passed `preflight`, and what can be had is better than
        nothing.
        """
        link = self.workers.link(record, peer)
        try:
            self.require_peer(peer)  # here as well: a peer that was saved may be gone from the file
            if not record.state.armed and asked:  # a VM with the gate still in has passed already
                self.preflight(record.vm, peer)
            link.spawn()
            told = link.request(Start(order=self.workers.order(record, peer, asked)), progress)
        except RemusError as exc:
            self._failed(record, link, exc)
            raise
        if told.state != "protected":  # the other host, or the VM, was lost in its first moments
            raise RemusError(f"VM {record.vm} is {told.state}: {told.reason}")
        record.log(log).info("protected to %s", peer)
        return record.status()

    def unprotect(self, vm: str, peer_is_dead: bool, progress: ProgressFn) -> str:
        """End a VM's protection; what is worth a word about how it ended."""
        record, why = self.record(vm), Reason.of(Code.UNPROTECT_ASKED)
        with record.leaving():  # or the tender takes a worker that ends for one that was lost, and begins the next
            if record.busy is False and record.state.role not in ("protected", "solo", "seeding", "fenced"):
                raise NotProtected(f"VM {vm} is not protected")
            note = self._end_worker(record, peer_is_dead, progress)
            with record.work:  # whoever began before us has done with the state file
                if record.state.role != "none":
                    self.store.update(vm, role="none", wanted=False, armed=False, gates=[], why=why)
                record.settle("unprotected", why)
        record.log(log).info("unprotected")
        return note

    def _end_worker(self, record: VmRecord, peer_is_dead: bool, progress: ProgressFn) -> str:
        """Have the VM's wiring taken out, by the worker it has or by one of its own; a note when it was not."""
        link, note = record.link, ""
        try:
            if link is not None and record.busy:
                link.request(End(peer_is_dead=peer_is_dead), progress, UNPROTECT_TIMEOUT_S)
            elif record.state.role == "protected":
                with record.work:
                    link = self._take_out(record, peer_is_dead, progress, leaving=True)
        except RemusError as exc:
            if not self._is_off(record.vm):
                raise
            # No VM, no output: whatever runs elsewhere, nothing of it can be heard from here.
            note = f"{record.vm} does not run here, so it was only forgotten ({exc})"
            record.log(log).warning("%s", note)
        if link is not None:
            link.stop()
            record.drop_link(link)
        return note

    def switchover(self, vm: str, progress: ProgressFn) -> Switched:
        """Move a protected VM to its backup: what the worker measured."""
        record = self.record(vm)
        record.refuse_fenced()
        link = record.link
        if link is None or not record.busy:
            raise NotProtected(
                f"VM {vm} is not protected: there is nowhere to move it to",
                hint=f"protect it first: remusdb protect {vm} --to HOST",
            )
        return link.request(Move(), progress, SWITCH_TIMEOUT_S)

    def fence(self, record: VmRecord, owner: str, term: int) -> None:
        """Another host owns the VM: durable first, then the worker's end. With `record.work` held."""
        was = record.status().state
        why = Reason.of(Code.OWNED_ELSEWHERE, owner=owner, term=term)
        term = reached(record.state.term, term)
        self.store.update(record.vm, role="fenced", owner=owner, term=term, why=why, put_away=False)
        link = record.link
        if link is not None:
            link.kill()  # the gate stays as it is: shut
            link.stop()
            record.drop_link(link)
        record.settle("fenced", why)
        self.tell(record, "fenced", was, why)

    def free(self, record: VmRecord, why: Reason) -> None:
        """Nobody can take the VM over any more: take out what a dead worker left, so that it speaks. `work` is held."""
        link = self._take_out(record, True, lambda _progress: None)
        link.stop()
        record.drop_link(link)
        self.store.update(record.vm, role="solo", wanted=True, armed=False, gates=[], why=why)
        record.settle("solo", why)
        self.tell(record, "solo", "held", why)

    def tell(self, record: VmRecord, event: EventName, was: str, why: Reason) -> None:
        """Into the history, and to the hooks."""
        status = record.status()
        self._history.record(
            Event(
                vm=record.vm,
                at_ns=time.time_ns(),
                host=self.config.host.name,
                by="host",
                event=event,
                was=was,
                now=status.state,
                reason=words(why),
                why=why,
                hint=hint(why, record.vm),
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

    def _wait(self, record: VmRecord) -> VmStatus:
        """For a protection that was begun by somebody else."""

        def settled() -> VmStatus | None:
            status = record.status()
            over = status.state == "protected" or not record.busy or status.state not in UNDER_WAY
            return status if over else None

        status = poll_until(settled, Deadline.after(WAIT_S), LOOK_S) or record.status()
        if status.state == "protected":
            return status
        raise RemusError(f"VM {record.vm} is {status.state}: {status.reason}")

    def _take_out(
        self, record: VmRecord, peer_is_dead: bool, progress: ProgressFn, *, leaving: bool = False
    ) -> WorkerLink:
        """An earlier worker left wiring behind: a new one takes it out, without protecting first."""
        peer = record.state.peer
        self.require_peer(peer)
        link = self.workers.link(record, peer, leaving=leaving)
        end = End(peer_is_dead=peer_is_dead, order=self.workers.order(record, peer))
        try:
            link.spawn()
            link.request(end, progress, UNPROTECT_TIMEOUT_S)
        except RemusError as exc:
            self._failed(record, link, exc)
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

    def _failed(self, record: VmRecord, link: WorkerLink, exc: RemusError) -> None:
        if link.waited_for:
            return  # an unprotect came in while `start` was under way: the worker is still wanted
        state = record.state
        shown: State = (
            "fenced" if state.role == "fenced" else "held" if state.armed else "solo" if state.wanted else "failed"
        )
        record.settle(shown, Reason.by(exc, Code.ERROR_HELD if shown == "held" else Code.ERROR))
        if shown == "solo":
            again = f"{record.vm} runs on alone; this is tried again by itself, until: remusdb unprotect {record.vm}"
            exc.hint = f"{exc.hint}; {again}" if exc.hint else again
        link.stop()
        record.drop_link(link)
