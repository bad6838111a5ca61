# SPDX-License-Identifier: Apache-2.0
"""What the timer tells the decisions of a VM, whose processors are threads of nobody: it is busy all the time."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remusdb.core.cadence import Pace, Why
from remusdb.worker.epoch_timer import EpochTimer

PACE = Pace(on_demand=True, epoch_s=0.02, epoch_max_s=60.0, gap_s=0.01, max_pause_share=0.1, busy_pause_share=0.1)
WAITED_S = 0.5  # at this share a pause of that length would be followed by 5 s without a cut


def wait(timer: EpochTimer) -> Why | None:
    return timer.wait(committed=lambda: True, pressed=lambda: False, called=lambda: False)


def test_what_a_cut_waited_for_is_no_pause() -> None:
    """libvirt may be away: the VM runs on until it is stopped."""
    timer = EpochTimer(PACE, (), os.getpid())
    assert wait(timer) is not None  # the first is due at once
    time.sleep(WAITED_S)
    timer.at_stop()
    timer.cut()
    began = time.monotonic()
    assert wait(timer) is Why.WORK
    assert time.monotonic() - began < WAITED_S
    timer.close()


@pytest.mark.parametrize(("wanted", "why"), [(True, Why.GAP), (False, Why.OUTPUT)])
def test_a_guest_that_waits_for_a_core_of_the_host_is_not_idle(wanted: bool, why: Why) -> None:
    """Its replies are not cut for one by one, which would take even more from it."""
    timer = EpochTimer(PACE, (), os.getpid())
    timer.close()
    vcpus = SimpleNamespace(ran=lambda: [0], wanted=lambda: wanted, close=lambda: None)
    rung = threading.Event()  # nobody sets it: only the time passes
    bell = SimpleNamespace(wait=lambda seconds: not rung.wait(seconds), reset=lambda: None, wake=lambda: None)
    timer._vcpus, timer._bell = cast(Any, vcpus), cast(Any, bell)  # output waits; its processors do not run
    wait(timer)
    timer.at_stop()
    timer.cut()
    assert wait(timer) is why


def test_a_wait_ends_when_somebody_calls() -> None:
    slow = Pace(on_demand=False, epoch_s=60.0, epoch_max_s=60.0, gap_s=0.01, max_pause_share=0.1, busy_pause_share=0.1)
    timer, called = EpochTimer(slow, (), os.getpid()), threading.Event()
    assert wait(timer) is Why.CLOCK
    timer.at_stop()
    timer.cut()

    def call() -> None:
        called.set()
        timer.wake()

    caller = threading.Timer(0.05, call)
    caller.start()
    assert timer.wait(committed=lambda: True, pressed=lambda: False, called=called.is_set) is None
    caller.join()
    timer.close()
    timer.wake()  # by a thread that does not know yet that it is over
