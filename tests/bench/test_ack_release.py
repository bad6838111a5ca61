# SPDX-License-Identifier: Apache-2.0
"""From an acknowledgement that was read to the frame on the wire: through the session's thread, and without it.

An ACK is an event, and a thread of its own decides and performs what follows from it; once whoever read it did so,
under a lock. Both ways are timed in one run, in turns, through a real gate.

python -m pytest tests/bench/test_ack_release.py -o log_cli=true --log-cli-level=INFO
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from remusdb.core import primary_events as events
from remusdb.net.factory import GateGroup, make_gate
from remusdb.worker.decider import Decider
from remusdb.worker.mailbox import Mailbox
from tests.host.netlab import Lab, frame, lab
from tests.unit.primary_rig import Rig

if TYPE_CHECKING:
    from collections.abc import Callable

    from remusdb.core.primary_effects import Effect

TIMES = 1000
SLOWER_MS = 0.1  # so much later the median may be, at most
log = logging.getLogger(__name__)


class Wire:
    """When each frame came out of the gate, by time.perf_counter()."""

    def __init__(self, net: Lab) -> None:
        self._net = net
        self.came: queue.SimpleQueue[float] = queue.SimpleQueue()
        os.set_blocking(net.wire.fd, True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while os.read(self._net.wire.fd, 65536):
            self.came.put(time.perf_counter())


def test_an_acknowledged_frame_leaves_as_soon_as_it_did() -> None:
    rig, lock = Rig(window=1 << 20), threading.Lock()
    rig.protect()
    with lab() as net:
        gates = GateGroup([make_gate("tap", net.vm.name)])
        gates.install()
        try:
            gates.hold()
            mailbox = Mailbox()

            def perform(effect: Effect) -> None:
                gates.release(getattr(effect, "epoch", 0))

            Decider(rig.primary, mailbox, perform).start()

            def in_place(epoch: int) -> None:
                with lock:
                    release = rig.primary.pipeline.ack(5, epoch)
                    assert release is not None
                    gates.release(release.epoch)

            def by_event(epoch: int) -> None:
                mailbox.post(events.Acked(5, epoch))

            ways: dict[str, Callable[[int], None]] = {"in place": in_place, "by event": by_event}
            wire = Wire(net)
            took_ms: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(2 * TIMES):
                way = list(ways)[number % 2]
                epoch = rig.primary.pipeline.captured + 1
                net.vm.send(frame(number))
                gates.mark(epoch)
                rig.cut()
                time.sleep(0.002)  # as between two epochs: every thread sleeps
                acked = time.perf_counter()
                ways[way](epoch)
                took_ms[way].append(1000 * (wire.came.get(timeout=5) - acked))
        finally:
            gates.remove()
    for way, took in took_ms.items():
        log.info("%s: p50 %.3f ms, p99 %.3f ms", way, *np.percentile(took, [50, 99]))
    medians: dict[str, Any] = {way: float(np.median(took)) for way, took in took_ms.items()}
    assert medians["by event"] - medians["in place"] < SLOWER_MS, medians
