# SPDX-License-Identifier: Apache-2.0
"""Keeps the initial sync from holding up the guest's own disk writes while the backup is slow, or away.

QEMU's copy of a disk and the guest's writes go through the same write log, which is bounded: a copy that is faster than
the backup would fill it, and every write of the guest would then wait for the backup. So QEMU's copy is slowed down
while a log is half full: the other half is the guest's. Where even that is not enough and the backup does not answer,
the copy is given up: the guest comes first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from remusdb.disk.writelog import WriteLog
from remusdb.errors import PeerUnreachable, RemusError

log = logging.getLogger(__name__)

LOOK_S = 0.05
SLOW_BYTES_S = 1 << 20  # QEMU's copy moves 1 MiB at a time
FULL_SPEED = 0  # no limit
SLOW_ABOVE, FAST_BELOW = 1 / 2, 1 / 4  # of the log
SILENT_MS = 1000.0  # so long without a word, the backup is away
GUEST_WAITS_S = 2.0  # a write of the guest may wait so long for a backup that is away


class Brake:
    """Watches the write logs of one initial sync. `look` again and again, from one thread."""

    def __init__(self, logs: Sequence[WriteLog], set_speed: Callable[[int], None]) -> None:
        """`set_speed` of all disks' copies, in bytes per second, 0 for no limit."""
        self._logs = logs
        self._set_speed = set_speed
        self._slow = False
        self._full_since: float | None = None

    def look(self, now: float, silent_ms: float) -> bool:
        """Slow the copy down, or let it go on. False: the guest's writes wait for a backup that is away: give up."""
        filled = max((writes.filled for writes in self._logs), default=0.0)
        if filled > SLOW_ABOVE and not self._slow:
            self._turn(True)
        elif filled < FAST_BELOW and self._slow:
            self._turn(False)
        if silent_ms < SILENT_MS or not any(writes.pressed for writes in self._logs):
            self._full_since = None
        elif self._full_since is None:
            self._full_since = now
        return self._full_since is None or now - self._full_since < GUEST_WAITS_S

    def release(self) -> None:
        """The copy is over."""
        if self._slow:
            self._turn(False)

    def _turn(self, slow: bool) -> None:
        self._slow = slow
        try:
            self._set_speed(SLOW_BYTES_S if slow else FULL_SPEED)
        except RemusError as exc:  # a job that is gone is noticed elsewhere
            log.info("the copy's speed is not set: %s", exc)


class BrakeThread(threading.Thread):
    """Looks for as long as the initial sync runs."""

    def __init__(
        self, brake: Brake, silent_ms: Callable[[], float | None], give_up: Callable[[Exception], None]
    ) -> None:
        """`silent_ms`: how long the backup was not heard; `give_up` is told why, once."""
        super().__init__(name="brake", daemon=True)
        self._brake = brake
        self._silent_ms = silent_ms
        self._give_up = give_up
        self._quit = threading.Event()

    def run(self) -> None:
        """Look until finished, or given up."""
        while not self._quit.wait(LOOK_S):
            if not self._brake.look(time.monotonic(), self._silent_ms() or 0.0):
                return self._give_up(
                    PeerUnreachable(
                        "the backup is away and the guest's disk writes would wait: the initial sync begins again"
                    )
                )

    def finish(self) -> None:
        """Stop looking; QEMU's copy has its speed back."""
        self._quit.set()
        self.join()
        self._brake.release()
