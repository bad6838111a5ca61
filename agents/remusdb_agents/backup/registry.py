# SPDX-License-Identifier: Apache-2.0
"""The replicas of this host that somebody uses, one a VM.

What lasts of a VM is in its state file, so one that nothing happens to has no object here, and no thread: a question
about it is answered from the file. Invariants: a VM has one `Replica` at most; one that has ended and that nobody uses
is forgotten; a state file that cannot be read concerns that VM alone.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from remusdb.control.status import StandbyStatus
from remusdb.core.messages import Standing
from remusdb.errors import NotProtected, RemusError
from remusdb.log import VmLog
from remusdb.names import require_name
from remusdb.reasons import Reason
from remusdb.wording import hint, words
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.replica import Replica

log = logging.getLogger(__name__)


class Registry:
    """All of them. Any thread may call."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._replicas: dict[str, Replica] = {}
        self._users: Counter[str] = Counter()

    def recover(self) -> None:
        """At the agent's start: finish what an earlier one left in the middle."""
        for vm in self._context.store.names():
            try:
                replica = Replica(vm, self._context)
            except RemusError as exc:  # `status` tells it, and a HELLO for this VM is refused
                VmLog(log, vm).error("%s (%s)", exc, exc.hint)
                continue
            if replica.unfinished:
                with self._lock:
                    self._replicas[vm] = replica
                replica.recover()

    @contextmanager
    def using(self, vm: str) -> Iterator[Replica]:
        """The VM's replica, made if need be: it stays this VM's one until the end of the block. UsageError for what is
        no name, UnreadableState."""
        require_name(vm)
        with self._lock:
            replica = self._replicas.get(vm)
            if replica is None:
                replica = self._replicas[vm] = Replica(vm, self._context)
            self._users[vm] += 1
        try:
            yield replica
        finally:
            with self._lock:
                self._users[vm] -= 1
                if not self._users[vm]:
                    del self._users[vm]
                self._forget(vm)

    @contextmanager
    def known(self, vm: str) -> Iterator[Replica]:
        """The same, of a VM of which something is known here. NotProtected of any other."""
        if self.find(vm) is None and vm not in self._context.store.names():
            raise NotProtected(f"no replica of VM {vm} is on this host", hint="ask the agent of the backup host")
        with self.using(vm) as replica:
            yield replica

    def find(self, vm: str) -> Replica | None:
        """The replica of a VM that somebody uses."""
        with self._lock:
            return self._replicas.get(vm)

    def live(self) -> list[Replica]:
        """Those that somebody uses; what has ended since the last call is forgotten."""
        with self._lock:
            for vm in list(self._replicas):
                self._forget(vm)
            return list(self._replicas.values())

    def standing(self, vm: str) -> Standing:
        """What this host is to the VM, for another host that asks before it does anything. Nothing is made for it."""
        name = require_name(vm)
        replica = self.find(name)
        if replica is not None:
            return replica.standing()
        state = self._context.store.load(vm)
        owner = "" if state.role == "promoting" else state.owner
        return Standing(name, state.term, owner, state.role, state.reason, state.uuid)

    def status(self, wanted: str | None) -> list[StandbyStatus]:
        """The status of every VM of which something is known here, or of one."""
        names = {*self._context.store.names(), *(replica.vm for replica in self.live())}
        return [self._status(vm) for vm in sorted(names) if wanted in (None, vm)]

    def _status(self, vm: str) -> StandbyStatus:
        try:
            replica = self.find(vm) or Replica(vm, self._context)
            return replica.status()
        except RemusError as exc:
            why = Reason.by(exc)
            return StandbyStatus(vm=vm, state="failed", reason=words(why), why=why, hint=hint(why, vm))

    def _forget(self, vm: str) -> None:
        """With the lock held."""
        replica = self._replicas.get(vm)
        if replica is not None and not self._users[vm] and replica.idle:
            del self._replicas[vm]
