# SPDX-License-Identifier: Apache-2.0
"""The one thread that looks at the time for all replicas: who is silent for too long, and whom a heartbeat is due.

Invariant: nothing that may wait (a takeover, a lock that is held for long, a peer that does not read) is done in it,
for all replicas would wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from remusdb.threads import vital
from remusdb_agents.backup.replica import Replica

log = logging.getLogger(__name__)

LOOK_S = 0.02
BEAT_S = 0.05


class Ticker:
    """Looks until `stop`."""

    def __init__(self, replicas: Callable[[], Sequence[Replica]]) -> None:
        """`replicas`: those that there are now."""
        self._replicas = replicas
        self._stop = threading.Event()
        self._beaten_at = 0.0

    def start(self) -> None:
        """Look from now on."""
        vital(self._run, name="ticker")

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                self.tick(time.monotonic())
            except Exception:  # task boundary: nobody else sees a silence
                log.exception("managing the replicas failed")

    def tick(self, now: float) -> None:
        """One look. `now`: time.monotonic()."""
        beat = now - self._beaten_at >= BEAT_S
        if beat:
            self._beaten_at = now
        for replica in self._replicas():
            try:
                replica.look()
                if beat:
                    replica.beat()
            except Exception:  # task boundary: one replica's failure is not the others'
                replica.log(log).exception("managing it failed")
