# SPDX-License-Identifier: Apache-2.0
"""Looks, while a VM is protected, at what no epoch tells: whether it runs, whether output is lost, the arbiter.

Owns two threads: one that looks a few times a second, one that asks the arbiter now and then and may wait for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from remusdb.arbiter.arbiter import Arbiter
from remusdb.arbiter.health import Health
from remusdb.errors import RemusError
from remusdb.net.gate import GateMetrics
from remusdb.reasons import Code, Reason
from remusdb.threads import spawn
from remusdb.troubles import RunTrouble, Troubles
from remusdb.vm.runstate import RunState

log = logging.getLogger(__name__)

LOOK_S = 0.2
ARBITER_S = 10.0
CALM_S = 5.0  # so long no frame was dropped: the episode is over
SHUT_DOWN, SHUT_S = "shutdown", 5.0  # a guest that shut down: QEMU ends soon, or is reset by `virsh reboot`
RUN_TROUBLES: tuple[RunTrouble, ...] = ("suspended", "io-error", "stopped")


class Lookout:
    """What it sees goes to `troubles`, and whether the VM stands still for good to `stays`."""

    def __init__(self, troubles: Troubles, held_max_bytes: int, stays: Callable[[bool], None]) -> None:
        """`held_max_bytes`: the gate's bound. `stays` is told whether the VM is to stand still after a takeover."""
        self._troubles = troubles
        self._held_max_bytes = held_max_bytes
        self._stays = stays
        self._dropped: int | None = None
        self._before = 0  # frames that were dropped before this episode
        self._calm_at = 0.0
        self._shut_at: float | None = None

    def start(
        self,
        over: threading.Event,
        run_state: Callable[[], RunState | None],
        metrics: Callable[[], GateMetrics],
        arbiter: Arbiter | None,
    ) -> None:
        """Look until `over`. `run_state`: None while it cannot be asked."""

        def look() -> None:
            while not over.wait(LOOK_S):
                try:
                    self.see_run_state(run_state(), time.monotonic())
                    self.see_gate(metrics(), time.monotonic())
                except RemusError as exc:  # what is away is told elsewhere
                    log.debug("not seen: %s", exc)

        def ask() -> None:
            while arbiter is not None and not over.is_set():
                self.see_arbiter(_health(arbiter))
                over.wait(ARBITER_S)

        for work in (look, ask):
            spawn(work, name=f"lookout-{work.__name__}")

    def see_run_state(self, state: RunState | None, now: float) -> None:
        """Tell of a VM that does not run, and of one that does again."""
        if state is None:
            return
        self._stays(state.stays)
        if state.status != SHUT_DOWN:
            self._shut_at = None
        elif self._shut_at is None or now - self._shut_at < SHUT_S:
            self._shut_at = self._shut_at or now
            return
        for what in RUN_TROUBLES:
            if state.why is None or what != state.what:
                self._troubles.clear(what, state.why or Reason.of(Code.RUNS_AGAIN))
        if state.why is not None:
            self._troubles.say(state.what, state.why)

    def see_gate(self, metrics: GateMetrics, now: float) -> None:
        """Tell of frames that were dropped, once an episode."""
        last, self._dropped = self._dropped, metrics.dropped_frames
        if last is None or metrics.dropped_frames < last:  # the first look, or another gate
            self._before = metrics.dropped_frames
        elif metrics.dropped_frames > last:
            self._calm_at = now + CALM_S
            count = metrics.dropped_frames - self._before
            why = Reason.of(Code.OUTPUT_DROPPED, frames=count, mib=self._held_max_bytes >> 20)
            self._troubles.say("output-dropped", why)
        elif now > self._calm_at and metrics.held_bytes < self._held_max_bytes / 2:
            self._troubles.clear("output-dropped", Reason.of(Code.OUTPUT_FITS))
            self._before = metrics.dropped_frames

    def see_arbiter(self, health: Health) -> None:
        """Tell of an arbiter that could not decide now, and of one that can again."""
        if health.problem:
            self._troubles.say("arbiter", Reason.of(Code.ARBITER_UNFIT, why=health.problem, hint=health.hint))
        else:
            self._troubles.clear("arbiter", Reason.of(Code.ARBITER_FIT))


def _health(arbiter: Arbiter) -> Health:
    try:
        return arbiter.health()
    except RemusError as exc:
        return Health(str(exc), exc.hint)
