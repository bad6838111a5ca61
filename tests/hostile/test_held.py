# SPDX-License-Identifier: Apache-2.0
"""What a primary that ignores the protocol can make the agent hold."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from remusdb.core.pages_encode import encode_full
from remusdb.core.wire import FrameType
from remusdb.errors import RemusError
from tests.hostile.measure import MIB
from tests.hostile.rig import Caller, Rig
from tests.hostile.sayings import frame, hello

EPOCHS = 276
EPOCH_MOST = 24 * MIB  # limits.epoch_max_bytes of this agent
WHY = {"epochs without waiting": "16 outstanding at most", "frames without a byte": "limits.epoch_max_bytes"}


def session(rig: Rig) -> tuple[Caller, int]:
    caller, welcome = rig.welcomed(hello("pg", "gamma"), "gamma")
    return caller, welcome.term


@pytest.mark.parametrize("what", WHY)
def test_what_a_primary_can_have_the_agent_hold(rig: Rig, what: str) -> None:
    rig.start(made_up=True, slow_ms=500, settings=f"[limits]\nepoch_max_bytes = {EPOCH_MOST}\n")
    with rig.unchanged(files=False, peak=512 * MIB):
        caller, term = session(rig)
        sent = 0
        with contextlib.suppress(RemusError):
            if what == "epochs without waiting":
                content = np.random.default_rng(1).integers(0, 256, (2560, 4096), np.uint8)  # 10 MiB
                made = encode_full(0, np.arange(2560), content).payloads
                for epoch in range(1, EPOCHS + 1):
                    caller.commit(term, epoch, *((FrameType.PAGES, payload) for payload in made))
                    sent = epoch
            else:
                burst = frame(FrameType.PAGES, term, 1, b"") * 10_000
                for _ in range(50):
                    caller.link.write([burst])
                    sent += 10_000
        assert caller.closed_within(60)
        assert WHY[what] in rig.told()
        during = rig.size()
        print(f"\n{what}: {sent} sent, peak {during.peak // MIB} MiB, then {during.resident // MIB} MiB")  # noqa: T201
