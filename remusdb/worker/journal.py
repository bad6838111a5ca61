# SPDX-License-Identifier: Apache-2.0
"""What is remembered and told of one session: the VM's state file, the status, the history and the hooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from remusdb.core.pipeline import Pipeline
from remusdb.core.primary_effects import Report
from remusdb.history import Event, EventName, History
from remusdb.reasons import Reason
from remusdb.state import StateStore, VmState
from remusdb.troubles import Troubles
from remusdb.wording import hint, words
from remusdb.worker.metrics import Metrics
from remusdb.worker.spec import ProtectionSpec


class Journal:
    """Of one session. Any thread may tell; only the session saves and reports."""

    def __init__(
        self,
        spec: ProtectionSpec,
        store: StateStore,
        history: History,
        pipeline: Pipeline,
        silence_ms: Callable[[], float | None],
    ) -> None:
        """`silence_ms`: how long the agent was not heard."""
        self.state: VmState = store.load(spec.vm)
        self.metrics = Metrics(Troubles(lambda event, what, why: self.tell(event, self.metrics.state, why, what=what)))
        self._spec = spec
        self._store = store
        self._history = history
        self._pipeline = pipeline
        self._silence_ms = silence_ms

    def save(self, changes: Mapping[str, Any]) -> None:
        """Make it durable: returns when it is on the disk, raises when it cannot be."""
        self.state = self._store.update(self._spec.vm, changed_at_ns=time.time_ns(), **changes)

    def report(self, report: Report) -> None:
        """A new state, with why; with an event, also into the history and to the hooks."""
        was = self.metrics.state
        self.metrics.set(report.state, report.why)
        if report.event:
            self.tell(report.event, was, report.why)

    def note(self, event: EventName, why: Reason) -> None:
        """Something happened in a state that goes on: this is why it is as it is."""
        was = self.metrics.state
        self.metrics.set(was, why)
        self.tell(event, was, why)

    def tell(self, event: EventName, was: str, why: Reason, **details: str) -> None:
        """Into the history and to the hooks."""
        self._history.record(
            Event(
                vm=self._spec.vm,
                at_ns=time.time_ns(),
                host=self._spec.host,
                by="worker",
                event=event,
                was=was,
                now=self.metrics.state,
                reason=words(why),
                why=why,
                hint=hint(why, self._spec.vm),
                term=self._pipeline.term,
                epoch=self._pipeline.committed,
                heard_ms_ago=self._silence_ms(),
                peer=self._spec.peer.name,
                details=dict(details),
            )
        )
