# SPDX-License-Identifier: Apache-2.0
"""What the daemon knows of one VM: its status, and its worker while there is one. What lasts is in its state file.

Invariant: at most one worker a VM; when it ends without having been told to, the VM's state says so and why.

    unprotected ──▶ seeding ──▶ protected ◀──▶ held               (told by the worker)
                       └───────────┴──▶ solo | failed | fenced    (told by it, or seen from its end)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from msgspec.structs import replace

from remusdb.control.status import State, VmStatus
from remusdb.core.roles import PROMOTED
from remusdb.errors import Fenced, RemusError
from remusdb.host.worker_process import WorkerLink
from remusdb.log import VmLog
from remusdb.reasons import Code, Reason
from remusdb.state import StateStore, VmState
from remusdb.wording import hint, words

ENDED: Final[tuple[State, ...]] = ("unprotected", "fenced", "failed", "solo")  # a worker may end in these by itself


class ManagedVm:
    """One VM, told of its worker's doings by the link (`WorkerEvents`). An earlier worker is not heard any more."""

    def __init__(self, vm: str, store: StateStore) -> None:
        self.vm = vm
        self._store = store
        self._lock = threading.Lock()
        self._link: WorkerLink | None = None
        self._read_at = -1
        self._state = VmState(vm=vm)
        self._status = VmStatus(vm=vm)
        self._told_at = time.monotonic()
        self._settled = False
        self._over = False
        self._leaving = 0
        self._settled_at = 0  # the state file then: what changed it since knows better
        self.work = threading.Lock()  # whoever starts or ends a worker, or puts the VM away

    @property
    def state(self) -> VmState:
        """What this host durably knows of the VM, as it is now. RemusError when the file cannot be read."""
        changed = self._store.changed(self.vm)
        if changed != self._read_at:
            self._state = self._store.load(self.vm)
            self._read_at = changed
        return self._state

    def log(self, log: logging.Logger) -> VmLog:
        """For lines about this VM."""
        return VmLog(log, self.vm, self._where)

    def _where(self) -> dict[str, int]:
        known = {"term": max(self._state.term, self._status.term), "epoch": self._status.committed or 0}
        return {name: value for name, value in known.items() if value}

    @property
    def link(self) -> WorkerLink | None:
        """The worker, while there is one."""
        return self._link

    @property
    def busy(self) -> bool:
        """Whether a worker has the VM, and its session is not over."""
        link = self._link
        return link is not None and (not self.over or link.waited_for)

    @property
    def over(self) -> bool:
        """Whether the worker told that its session ended by itself (it may linger until it is stopped)."""
        return self._over

    @property
    def taken(self) -> bool:
        """Whether somebody has the VM in hand: a worker, or an unprotect."""
        return self.busy or self._leaving > 0

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """While an unprotect is under way nobody begins a worker but itself."""
        with self._lock:
            self._leaving += 1
        try:
            yield
        finally:
            with self._lock:
                self._leaving -= 1

    def claim(self, link: WorkerLink, peer: str, *, leaving: bool = False) -> None:
        """Make `link` this VM's worker; refused while it has one, or an unprotect is under way (`leaving`: is this)."""
        with self._lock:
            if self._link is not None:
                raise self._busy()
            if self._leaving and not leaving:
                raise RemusError(f"VM {self.vm} is being unprotected", hint=f"see: remusdb status {self.vm}")
            self._link = link
            self._settled = self._over = False
            state = self.state
            shown: State = "held" if state.armed else "seeding"
            why = Reason.of(Code.REJOINING if state.armed else Code.STARTING)
            self._status = self._because(shown, why, VmStatus(vm=self.vm, peer=peer, term=state.term))
            self._told_at = time.monotonic()

    def drop_link(self, link: WorkerLink) -> None:
        """The worker is done with, in good order or after an error that has been told."""
        with self._lock:
            if self._link is link:
                self._link = None

    def settle(self, state: State, why: Reason) -> None:
        """Enter a state that no worker tells, and hear nothing more of a worker that is ending."""
        with self._lock:
            self._settle(state, why)

    def _settle(self, state: State, why: Reason) -> None:
        self._settled, self._settled_at = True, self._store.changed(self.vm)
        self._status = replace(self._because(state, why), in_flight=0)

    def _because(self, state: State, why: Reason | None, status: VmStatus | None = None) -> VmStatus:
        """The status (the present one, where none is given) in this state, with why."""
        was = status or self._status
        return replace(was, state=state, why=why, reason=words(why), hint=hint(why, self.vm))

    def status(self) -> VmStatus:
        """The VM's status now. The age of the last commit grows also while nobody tells it."""
        with self._lock:
            try:
                state = self.state
            except RemusError as exc:
                return self._because("failed", Reason.by(exc))
            if not self.busy and self._settled_at != self._read_at:  # the file was changed by somebody else since
                status = VmStatus(vm=self.vm, reason=state.reason, peer=state.peer)
                self._status = replace(status, state=_shown(state))
                if (why := _why(state)) is not None:
                    self._status = self._because(_shown(state), why)
            found, age_ms = self._status, self._status.committed_age_ms
            if age_ms is not None:
                age_ms = round(age_ms + 1000 * (time.monotonic() - self._told_at), 1)
            found = replace(
                found,
                owner=state.owner,
                wanted=state.wanted,
                quarantined_disks=state.quarantined_disks,
                term=max(state.term, found.term),
                committed_age_ms=age_ms,
            )
            if state.role == "fenced":
                why = state.why or Reason.of(Code.OWNED_ELSEWHERE, owner=state.owner, term=state.term)
                found = self._because("fenced", why, replace(found, peer=state.owner or state.peer))
            return found

    def on_status(self, link: WorkerLink, status: VmStatus) -> None:
        """The worker tells its state."""
        with self._lock:
            if self._link is not link:
                return
            self._over = status.state in ENDED
            if self._over:
                self._settled_at = self._store.changed(self.vm)
            if not self._settled:
                self._status = replace(status, vm=self.vm)
                self._told_at = time.monotonic()

    def on_end(self, link: WorkerLink, how: str) -> None:
        """The worker is gone. Its VM is left alone: running if it was, silent if its output was held."""
        with self._lock:
            if self._link is not link:
                return
            self._link = None
            self._status = replace(self._status, in_flight=0)
            if self._status.state not in ENDED and not self._settled:
                held, wanted = self._left_behind()
                why = Reason.of(Code.WORKER_LOST if held else Code.WORKER_ENDED, how=how, last=self._status.reason)
                self._settle("held" if held else "solo" if wanted else "failed", why)

    def adopted(self, link: WorkerLink) -> None:
        """`link` is the worker that an earlier daemon left behind. What it last did, the state file tells."""
        with self._lock:
            self._link, self._settled, self._over = link, False, False
            with suppress(RemusError):
                state = self.state
                shown: State = "protected" if state.armed else "seeding"
                status = VmStatus(vm=self.vm, peer=state.peer, term=state.term)
                self._status = self._because(shown, Reason.of(Code.WORKER_UNHEARD), status)

    def refuse_fenced(self) -> None:
        """Fenced when another host owns the VM."""
        state = self.state
        if state.role == "fenced":
            raise Fenced(
                f"host {state.owner or state.peer} has owned VM {self.vm} since term {state.term}",
                hint=f"to have it back here, run on that host: remusdb reprotect {self.vm} --to THIS-HOST",
                term=state.term,
            )

    def _left_behind(self) -> tuple[bool, bool]:
        """Of a worker that died: whether output is held, and whether another one begins again."""
        try:
            return self.state.armed, self.state.wanted
        except RemusError:
            return True, False

    def _busy(self) -> RemusError:
        state = self._status.state
        what = f"is protected to {self._status.peer}" if state == "protected" else f"is being protected ({state})"
        return RemusError(f"VM {self.vm} {what}", hint=f"see: remusdb status {self.vm}")


def _shown(state: VmState) -> State:
    """How the role in a state file reads in status while no worker says more."""
    match state.role:
        case "seeding":
            return "solo" if state.wanted else "unprotected"
        case "protected":
            return "held"
        case "solo" | "fenced":
            return state.role
        case "none" | "standby" | "promoting" | "promoted":  # the agent tells of these
            return "unprotected"


def _why(state: VmState) -> Reason | None:
    """Why the VM is in the state that its file tells; None: what the file says is all."""
    if state.role in PROMOTED:
        return Reason.of(Code.TAKEN_OVER_HERE, term=state.term, why=state.why or state.reason)
    if state.role == "protected":
        return Reason.of(Code.NO_WORKER, last=state.why or state.reason)
    return state.why
