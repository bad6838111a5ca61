# SPDX-License-Identifier: Apache-2.0
"""Whether a VM's primary is silent for too long; the ticker asks some 50 times a second, and waits for nobody.

Invariant: what follows from a silence is done in a thread, of which there is one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Literal

from remusdb.config import Failover
from remusdb.core.standby import Phase
from remusdb.errors import NoThread
from remusdb.log import VmLog
from remusdb.threads import spawn
from remusdb_agents.backup.silence import SilenceWatch

log = logging.getLogger(__name__)

Seen = Literal["", "heard", "silent", "copy silent"]


class Lookout:
    """One VM's."""

    def __init__(self, failover: Failover) -> None:
        self._automatic = failover.automatic
        self._watch = SilenceWatch(failover.silence_ms / 1000)
        self._copy_watch = SilenceWatch(failover.copy_patience_ms / 1000)
        self._trying = threading.Event()

    @property
    def trying(self) -> bool:
        """Whether a thread does what a silence asked for."""
        return self._trying.is_set()

    def look(self, phase: Phase, heard: float) -> Seen:
        """What is to be done now. `heard`: the last sign of life, by time.monotonic()."""
        now = time.monotonic()
        silent, copy_silent = self._watch.look(now, heard), self._copy_watch.look(now, heard)
        if not silent and phase is Phase.READY:
            return "heard"
        if self.trying:
            return ""
        if copy_silent and phase is Phase.SEEDING:
            return "copy silent"
        return "silent" if silent and self._automatic and phase is Phase.READY else ""

    def apart(self, work: Callable[[], object], vm: str) -> None:
        """Do it in a thread; where there is none, the next look tries again."""

        def run() -> None:
            try:
                work()
            except Exception:  # task boundary: it is tried again
                VmLog(log, vm).exception("what a silence asked for failed")
            finally:
                self._trying.clear()

        self._trying.set()
        try:
            spawn(run, name=f"silence-{vm}")
        except NoThread as exc:
            self._trying.clear()
            VmLog(log, vm).error("%s", exc)
