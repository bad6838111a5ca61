# SPDX-License-Identifier: Apache-2.0
"""What a real gate drops at its bound is told: once, with the figures, and once more when there is room again."""

from __future__ import annotations

from remusdb.net.factory import make_gate
from remusdb.reasons import Code, Reason
from remusdb.troubles import Troubles
from remusdb.worker.lookout import CALM_S, Lookout
from tests.host.netlab import frame, lab

HELD_MAX_BYTES = 1 << 20


def test_what_a_gate_drops_is_told_once() -> None:
    told: list[tuple[str, str, Reason]] = []
    lookout = Lookout(Troubles(lambda *what: told.append(what)), HELD_MAX_BYTES, lambda _still: None)
    with lab() as net:
        gate = make_gate("tap", net.vm.name, HELD_MAX_BYTES)
        gate.install()
        try:
            gate.hold()
            lookout.see_gate(gate.metrics(), 0.0)
            for number in range(2 * HELD_MAX_BYTES // 1500):
                net.vm.send(frame(number, size=1500))
            gate.mark(1)
            metrics = gate.metrics()
            for now in (1.0, 1.0 + 2 * CALM_S):
                lookout.see_gate(metrics, now)
            assert [what[:2] for what in told] == [("trouble", "output-dropped")]
            assert told[0][2] == Reason.of(Code.OUTPUT_DROPPED, frames=metrics.dropped_frames, mib=1)
            gate.release(1)
            net.wire.receive(metrics.held_frames, 2.0)
            lookout.see_gate(gate.metrics(), 2.0 + 2 * CALM_S)
            assert [what[:2] for what in told[1:]] == [("cleared", "output-dropped")]
        finally:
            gate.remove()
