# SPDX-License-Identifier: Apache-2.0
"""What the daemon knows of one VM: its status, its kept state, and its worker while there is one.

Invariant: at most one worker a VM; when it ends without having been told to, the VM's state says so and why.

    unprotected ──▶ seeding ──▶ protected ◀──▶ held          (told by the worker)
                       └───────────┴──▶ failed | fenced      (told by it, or seen from its end)
"""

from __future__ import annotations

import threading
import time
from typing import Any

from remusdb.errors import RemusError
from remusdb.host.state import SavedVm, StateStore
from remusdb.host.status import VmStatus
from remusdb.host.worker_link import WorkerLink

ENDED = frozenset({"unprotected", "fenced", "failed"})  # states that a worker may end in by itself


class VmRecord:
    """One VM, told of its worker's doings by the link (`WorkerEvents`). An earlier worker is not heard any more."""

    def __init__(self, vm: str, store: StateStore, kept: SavedVm | None = None) -> None:
        self.vm = vm
        self.kept = kept
        self.peer = kept.peer if kept else None
        self._store = store
        self._lock = threading.Lock()
        self._link: WorkerLink | None = None
        self._status = self._fresh()
        self._told_at = time.monotonic()
        self._settled = False

    @property
    def link(self) -> WorkerLink | None:
        """The worker, while there is one."""
        return self._link

    @property
    def over(self) -> bool:
        """Whether the worker told that its session ended by itself (it may linger until it is stopped)."""
        return self._status.state in ENDED

    @property
    def held(self) -> bool:
        """Whether the last session left the VM's output held."""
        return self.kept is not None and self.kept.protected

    @property
    def fenced(self) -> bool:
        """Whether the other host runs the VM, as far as was heard."""
        return self.kept is not None and self.kept.saved.get("role") == "fenced"

    @property
    def wired(self) -> bool:
        """Whether the last session may have left gates on the VM's network."""
        return self.kept is not None and self.kept.saved.get("role") in ("protected", "fenced")

    def claim(self, link: WorkerLink, peer: str) -> None:
        """Make `link` this VM's worker; refused while it has one."""
        with self._lock:
            if self._link is not None:
                raise self._busy()
            self._link = link
            self._settled = False
            self.peer = peer
            self._status = self._fresh()
            self._status.state, self._status.reason = "seeding", "the worker starts"
            if self.held:
                self._status.state, self._status.reason = "held", "protection is taken up again; output is held"
            self._told_at = time.monotonic()

    def drop_link(self, link: WorkerLink) -> None:
        """The worker is done with, in good order or after an error that has been told."""
        with self._lock:
            if self._link is link:
                self._link = None

    def settle(self, link: WorkerLink | None, state: str, reason: str) -> None:
        """Enter a state that the worker does not tell, and hear nothing more of that worker."""
        with self._lock:
            if self._link is not None and self._link is not link:
                return  # another worker has been started since
            self._settled = True
            self._status.state = state
            self._status.reason = f"{reason}; output stays held" if self.held else reason

    def status(self) -> dict[str, Any]:
        """The VM's status now. The age of the last commit grows also while nobody tells it."""
        with self._lock:
            found = self._status.to_dict()
            if found["committed_age_ms"] is not None:
                found["committed_age_ms"] = round(
                    found["committed_age_ms"] + 1000 * (time.monotonic() - self._told_at), 1
                )
            return found

    def on_status(self, link: WorkerLink, status: dict[str, Any]) -> None:
        """The worker tells its state."""
        with self._lock:
            if self._link is link and not self._settled:
                self._status.take(status)
                self._told_at = time.monotonic()

    def on_save(self, link: WorkerLink, saved: dict[str, Any]) -> None:
        """The worker wants this kept before it goes on."""
        if self._link is not link:
            raise RemusError(f"VM {self.vm} has another worker by now")
        kept = SavedVm(self.vm, self.peer or "", saved)
        self._store.save(kept)
        self.kept = kept

    def on_end(self, link: WorkerLink, how: str) -> None:
        """The worker is gone. Its VM is left alone: running if it was, silent if its output was held."""
        with self._lock:
            if self._link is not link:
                return
            self._link = None
            self._status.in_flight = 0
            if self._status.state not in ENDED:
                last = f" (last: {self._status.reason})" if self._status.reason else ""
                self._status.state = "failed"
                self._status.reason = f"the worker {how}{last}{'; output stays held' if self.held else ''}"

    def _fresh(self) -> VmStatus:
        term = self.kept.saved.get("term") if self.kept else None
        return VmStatus(vm=self.vm, peer=self.peer, term=term if isinstance(term, int) else 0)

    def _busy(self) -> RemusError:
        state = self._status.state
        what = f"is already protected to {self.peer}" if state == "protected" else f"is being protected ({state})"
        return RemusError(f"VM {self.vm} {what}", hint=f"see: remusdb status {self.vm}")
