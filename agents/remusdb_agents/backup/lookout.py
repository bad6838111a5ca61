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
from remusdb.core.patience import Patience
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
        self._patience = Patience(failover.silence_ms / 1000, failover.adaptive)
        self._limit_s, self._heartbeat_s = self._patience.most_s, 0.0
        self._follows = False  # another connection, not yet looked at
        self._copy_patience_s = failover.copy_patience_ms / 1000
        self._watch, self._copy_watch = SilenceWatch(), SilenceWatch()
        self._trying = threading.Event()

    @property
    def trying(self) -> bool:
        """Whether a thread does what a silence asked for."""
        return self._trying.is_set()

    @property
    def limit_ms(self) -> int:
        """So long the primary may be silent now."""
        return round(1000 * self._limit_s)

    @property
    def datagrams(self) -> bool:
        """Whether the primary is heard by datagrams now."""
        return self._patience.datagrams

    def follow(self, heartbeat_ms: int) -> None:
        """Another connection of the primary, which said how often it will be heard at least. Any thread may tell."""
        self._heartbeat_s, self._follows = heartbeat_ms / 1000, True

    def look(self, phase: Phase, heard: float, excused: Callable[[bool], bool], datagram_at: float = 0.0) -> Seen:
        """What is to be done now. `heard`: the last sign of life, `datagram_at`: the last datagram.

        `excused`: whether a silence has another cause than a death, for a primary that is heard by datagrams or is not.
        It then has to last for all of `silence_ms`. Times by time.monotonic().
        """
        now = time.monotonic()
        self._learn(phase, heard, datagram_at)
        limit_s, most_s = self._limit_s, self._patience.most_s
        if limit_s < most_s and now - heard >= limit_s and excused(self.datagrams):
            limit_s = most_s
        silent = self._watch.look(now, heard, limit_s)
        copy_silent = self._copy_watch.look(now, heard, self._copy_patience_s)
        if not silent and phase is Phase.READY:
            return "heard"
        if self.trying:
            return ""
        if copy_silent and phase is Phase.SEEDING:
            return "copy silent"
        return "silent" if silent and self._automatic and phase is Phase.READY else ""

    def _learn(self, phase: Phase, heard: float, datagram_at: float) -> None:
        # An initial sync loads hosts and link in its own way: what it shows says nothing of epochs.
        if self._follows or phase is not Phase.READY:
            self._follows = False
            self._patience.begin(self._heartbeat_s)
        self._patience.heard(heard)
        self._patience.datagram(datagram_at)
        self._limit_s = self._patience.limit_s()

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
