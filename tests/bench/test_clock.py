# SPDX-License-Identifier: Apache-2.0
"""What ten minutes of protection, and a takeover, cost two guests' clocks: the bare-metal one and Linux, side by side.

CLOCK_RUN_S=600 python -m pytest tests/bench/test_clock.py -o log_cli=true --log-cli-level=INFO
"""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from pathlib import Path

import pytest

from tests.vm.pair import Pair, eventually, running_pair
from tests.vm.test_clock import ahead_ms, clocks, mended, start_linux
from tools.lab.clocks import lost_ms
from tools.lab.guest import Mode

RUN_S = float(os.environ.get("CLOCK_RUN_S", "30"))
REPO = Path(__file__).resolve().parents[2]
log = logging.getLogger(__name__)


def promoted(pair: Pair, vm: str) -> bool:
    return bool(pair.product.standby(vm)["state"] == "promoted")


@pytest.mark.timeout(RUN_S + 600)
def test_ten_minutes() -> None:
    with running_pair(REPO / "build" / "test" / "bench-clock") as pair:
        bare, linux = pair.bare(Mode.CLOCKS), start_linux(pair)
        for vm in (bare, linux):
            pair.protect(vm.name)
        time.sleep(2.0)
        here = clocks(pair, pair.a, bare)
        first, first_ms = here.read(), ahead_ms(pair)
        began = time.monotonic()
        time.sleep(RUN_S)
        last, last_ms = here.read(), ahead_ms(pair)
        passed = time.monotonic() - began
        for vm, lost in ((bare, lost_ms(first, last)), (linux, {"clock_timestamp()": first_ms - last_ms})):
            status = pair.product.status(vm.name)
            paused = {key: value for key, value in status.items() if "pause" in key or key == "epoch"}
            log.info("%s, %s: lost ms %s in %.0f s; %s", vm.name, vm.accel, lost, passed, paused)
            assert mended(status)
        assert last.back == 0
        for vm in (bare, linux):
            pair.a.kill_qemu(vm.name)
            eventually(partial(promoted, pair, vm.name), 15, "no takeover")
        survivor, survivor_ms = clocks(pair, pair.b, bare).read(), ahead_ms(pair)
        log.info("by the takeover, %s: lost ms %s, steps back %d", bare.name, lost_ms(last, survivor), survivor.back)
        log.info("by the takeover, %s: lost ms %.1f", linux.name, last_ms - survivor_ms)
