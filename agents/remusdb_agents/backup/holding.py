# SPDX-License-Identifier: Apache-2.0
"""What one agent has of one VM beside what is decided about it: its standby and what feeds that, its file, its history.

Changed in a turn of the VM's desk, or by the one errand that starts or ends the standby.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from remusdb.control.status import StandbyStatus
from remusdb.core.backup import Backup
from remusdb.core.backup_effects import Outcome
from remusdb.core.backup_events import Durable
from remusdb.core.messages import Refuse, Welcome
from remusdb.core.standby import Phase
from remusdb.history import Author, Event, EventName
from remusdb.log import VmLog
from remusdb.reasons import Code, Reason
from remusdb.state import VmState
from remusdb.troubles import Trouble, Troubles
from remusdb.wording import hint, words
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.hearing import Hearing
from remusdb_agents.backup.inbox import Inbox
from remusdb_agents.backup.lines import Lines
from remusdb_agents.backup.references import References
from remusdb_agents.backup.seeding import Seeding
from remusdb_agents.backup.standby.machine import StandbyMachine


class Holding:
    """One VM's."""

    def __init__(self, vm: str, context: Context) -> None:
        """UnreadableState."""
        self.vm, self.context = vm, context
        self.state = context.store.load(vm)
        prefix = context.config.arbiter.prefix if context.config.arbiter else ""
        self.core = Backup(vm, context.name, _durable(self.state), prefix)
        self.machine: StandbyMachine | None = None  # the standby of the core's session
        self.inbox = Inbox(context.config.limits.epoch_max_bytes)
        self.seeding = Seeding()
        self.references = References()
        self.lines = Lines()
        self.hearing = Hearing()
        self.troubles = Troubles(self._tell_trouble)
        self.answers: dict[int, Welcome | Refuse] = {}  # to HELLOs, by connection
        self.outcomes: dict[int, Outcome] = {}  # of what was asked for, by its number
        self.moved: list[str] = []  # files, by the last `forget`; and those that it names as kept
        self.quarantined_disks: list[str] = []

    def log(self, log: logging.Logger) -> VmLog:
        """For lines about this VM."""
        return VmLog(log, self.vm, self._where)

    def _where(self) -> dict[str, int]:
        here = self.core.now.standby
        return {"term": here.term, "epoch": here.committed}

    def read(self) -> Durable:
        """The state file, as it is now. UnreadableState."""
        self.state = self.context.store.load(self.vm)
        return _durable(self.state)

    def update(self, **changes: Any) -> None:
        """Change it so that it lasts. RemusError, Fenced."""
        self.state = self.context.store.update(self.vm, **changes)

    def status(self, silence_limit_ms: int, datagrams: bool) -> StandbyStatus:
        """The part of `remusdb status` that is known here. In a turn. `silence_limit_ms`: so long it may be silent;
        `datagrams`: it is heard by them."""
        my, phase, state = self.core.now, self.core.phase, self.state
        waits = phase is Phase.STARTING or (phase.holds and not phase.owns)
        silent_s = time.monotonic() - self.hearing.heard()
        return StandbyStatus(
            vm=self.vm,
            role="promoted" if phase.owns else "standby",
            state=phase.shown,
            reason=words(my.why),
            why=my.why,
            hint=hint(my.why, self.vm),
            peer=state.peer,
            owner=my.standby.owner or state.owner,
            term=my.standby.term,
            committed=my.standby.committed,
            applied=my.standby.applied,
            troubles=self.troubles.names,
            primary_silence_ms=round(1000 * silent_s) if waits else None,
            silence_limit_ms=silence_limit_ms if waits else None,
            heartbeat=("datagrams" if datagrams else "connection") if waits else None,
            quarantined_disks=state.quarantined_disks,
            decided_at_ns=state.decided_at_ns,
            resumed_at_ns=state.resumed_at_ns,
        )

    def tell(self, name: EventName, was: str, why: Reason, *, by: Author = "agent", **evidence: Any) -> None:
        """Into the history, and to the hooks. `evidence`: epoch, heard_ms_ago, details."""
        my = self.core.now
        told: dict[str, Any] = {"epoch": my.standby.committed, "heard_ms_ago": None} | evidence
        self.context.history.record(
            Event(
                vm=self.vm,
                at_ns=time.time_ns(),
                host=self.context.name,
                by=by,
                event=name,
                was=was,
                now=my.standby.phase.shown,
                reason=words(why),
                why=why,
                hint=hint(why, self.vm),
                term=my.standby.term,
                peer=my.durable.peer,
                **told,
            )
        )

    def _tell_trouble(self, name: EventName, what: Trouble, why: Reason) -> None:
        self.tell(name, self.core.phase.shown, why, details={"what": what})


def _durable(state: VmState) -> Durable:
    """As much of the state file as is decided by."""
    return Durable(
        role=state.role,
        term=state.term,
        owner=state.owner,
        peer=state.peer,
        uuid=state.uuid,
        why=state.why or (Reason.of(Code.OTHER, why=state.reason) if state.reason else None),
        armed=state.armed,
        quarantined=state.quarantined,
        resuming=state.resuming,
    )
