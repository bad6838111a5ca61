# SPDX-License-Identifier: Apache-2.0
"""What the pages show: the daemons are asked once a second, whoever looks. Keeps the last minutes for the plots.

Owns one thread. Invariant: a look is one moment's answers; where a daemon does not answer, the look says so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from remusdb.control.both import Told
from remusdb.control.status import VmStatus
from remusdb.control.verdict import Status, Vms
from remusdb.threads import vital

log = logging.getLogger(__name__)

EACH_S = 1.0
STALE_S = 30.0
KEPT_SAMPLES = 600  # ten minutes, a few hundred KiB for a dozen VMs
MOST_VMS = 500  # whose samples are kept

Sample = list[float | None]
# In this order after the time; app.js draws them by these positions.
PLOTTED = (
    "commit_ms_p50", "commit_ms_p99", "pause_ms_p50", "pause_ms_p99", "epochs_per_s", "dirty_pages", "bytes_per_s",
    "held_bytes", "clock_lag_ms",
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """What was seen at one moment."""

    number: int
    at: float  # seconds since 1970
    told: Told
    found: Vms

    def of(self, vm: str) -> Status | None:
        """One VM of it."""
        return next((one for one in self.found.vms if one.vm == vm), None)


class Watching:
    """Looks each second, from `start` on."""

    def __init__(self, ask: Callable[[], Told]) -> None:
        self._ask = ask
        self._samples: dict[str, deque[Sample]] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self.newest = Look(0, 0.0, Told(), Told().judged())

    def start(self) -> None:
        """The first look is made before this returns."""
        self.look()
        vital(self._go_on, name="watching")

    def stop(self) -> None:
        """No further look."""
        self._end.set()

    def look(self) -> None:
        """One look."""
        told = self._ask()
        look = Look(self.newest.number + 1, time.time(), told, told.judged())
        with self._lock:
            here = {one.vm for one in look.found.vms}
            for gone in self._samples.keys() - here:
                del self._samples[gone]
            for one in look.found.vms[:MOST_VMS]:
                self._samples.setdefault(one.vm, deque(maxlen=KEPT_SAMPLES)).append(sample(look.at, one))
        self.newest = look

    def fresh(self) -> bool:
        """Whether looks are still made; one may take as long as two daemons that hang."""
        return time.time() - self.newest.at < STALE_S

    def samples(self, vm: str) -> list[Sample]:
        """Those of a VM that are kept, the oldest first."""
        with self._lock:
            return list(self._samples.get(vm, ()))

    def _go_on(self) -> None:
        while not self._end.wait(EACH_S):
            try:
                self.look()
            except Exception:  # task boundary: the next second is another try, and the page shows how old this one is
                log.exception("the daemons could not be asked")


def sample(at: float, one: Status) -> Sample:
    """One point of each plot; none where no epochs are cut, but of what is held."""
    if not isinstance(one, VmStatus):
        return [at, *([None] * len(PLOTTED))]
    goes = one.state == "protected"
    values = [getattr(one, key) if goes or key == "held_bytes" else None for key in PLOTTED]
    return [at, *values]
