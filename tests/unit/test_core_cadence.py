# SPDX-License-Identifier: Apache-2.0
"""When an epoch is cut: for output that waits, for a guest that works, and now and then for one that does nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remusdb.core.cadence import SETTLE_S, Cadence, Cut, Pace, Seen, Wait, Why

PACE = Pace(on_demand=True, epoch_s=0.05, epoch_max_s=0.5, gap_s=0.02, max_pause_share=0.5, busy_pause_share=0.5)
QUIET = Seen(output_s=None, busy=False, worked_s=0.0, committed=True)
PAUSE_S = 0.002


def after_a_cut(pace: Pace = PACE, pause_s: float = PAUSE_S) -> Cadence:
    """Whose last cut began at 0."""
    cadence = Cadence(pace, 0.0)
    cadence.cut(0.0, pause_s)
    return cadence


@pytest.mark.parametrize("pace", [PACE, replace(PACE, on_demand=False)])
def test_the_first_epoch_is_cut_at_once(pace: Pace) -> None:
    assert isinstance(Cadence(pace, 7.0).look(7.0, QUIET), Cut)


@pytest.mark.parametrize(
    ("now", "seen", "found"),
    [
        (0.010, replace(QUIET, output_s=0.001), Cut(Why.OUTPUT)),  # one client that waits for its reply
        (0.010, replace(QUIET, output_s=0.009, busy=True), Wait(0.001)),  # others will be answered as well
        (0.020, replace(QUIET, output_s=0.009, busy=True), Cut(Why.GAP)),
        (0.010, replace(QUIET, output_s=0.0), Wait(SETTLE_S)),
        (0.010, replace(QUIET, output_s=0.005, committed=False), Wait(0.010)),
        (0.020, replace(QUIET, output_s=0.015, committed=False), Cut(Why.OUTPUT)),  # a long way to the backup
        (0.003, replace(QUIET, output_s=0.002), Wait(0.001)),  # else it would stand still for more than its share
        (0.100, QUIET, Wait(0.0125)),
        (0.100, replace(QUIET, worked_s=0.05), Cut(Why.WORK)),
        (0.500, QUIET, Cut(Why.IDLE)),
        (0.001, replace(QUIET, pressed=True), Cut(Why.DISK)),
    ],
)
def test_on_demand(now: float, seen: Seen, found: Cut | Wait) -> None:
    told = after_a_cut().look(now, seen)
    if isinstance(found, Wait):
        assert isinstance(told, Wait)
        assert told.seconds == pytest.approx(found.seconds)
    else:
        assert told == found


@pytest.mark.parametrize(
    ("now", "waited_s", "wait_s"), [(0.005, 0.004, 0.001), (0.031, 0.030, 0.003), (0.049, 0.04, 0.001)]
)
def test_a_guest_that_works_for_long_is_looked_at_more_rarely(now: float, waited_s: float, wait_s: float) -> None:
    """Each look costs the host something; the cut is not late for it."""
    cadence = after_a_cut(replace(PACE, busy_pause_share=0.1), 0.006)
    told = cadence.look(now, Seen(waited_s, busy=True, worked_s=0.0, committed=True))
    assert isinstance(told, Wait) and told.seconds == pytest.approx(wait_s if now > 0.012 else 0.012 - now)


def test_a_guest_that_works_is_cut_the_more_rarely_the_dearer_its_cuts_are() -> None:
    """One that is idle is not: nobody loses anything while it stands still."""
    pace = replace(PACE, busy_pause_share=0.1)
    busy = Seen(output_s=0.01, busy=True, worked_s=0.0, committed=True)
    for pause_s, due in ((0.001, 0.020), (0.002, 0.020), (0.004, 0.040), (0.006, 0.050)):
        cadence = after_a_cut(pace, pause_s)
        assert isinstance(cadence.look(due - 0.001, busy), Wait)
        assert cadence.look(due + 1e-9, busy) == Cut(Why.GAP)
        assert cadence.look(2 * pause_s + 1e-9, replace(busy, busy=False)) == Cut(Why.OUTPUT)


def test_a_reply_never_waits_longer_than_a_fixed_clock_would_have_it_wait() -> None:
    """With 32 clients a cut each 60 to 100 ms was slower than one each 50."""
    pace = replace(PACE, busy_pause_share=0.01)
    cadence = after_a_cut(pace, 0.004)
    assert cadence.look(pace.epoch_s + 1e-9, Seen(0.05, busy=True, worked_s=0.0, committed=True)) == Cut(Why.GAP)


def test_one_cut_that_waited_for_the_host_s_cpu_is_no_dear_cut() -> None:
    pace = replace(PACE, busy_pause_share=0.1)
    cadence = Cadence(pace, 0.0)
    busy = Seen(output_s=0.02, busy=True, worked_s=0.0, committed=True)
    for cut in range(5):
        cadence.cut(0.1 * cut, 0.1 * cut + 0.0025)
    cadence.cut(0.5, 0.512)  # the longest, of six
    assert cadence.look(0.5251, busy) == Cut(Why.GAP)
    assert isinstance(cadence.look(0.5239, busy), Wait), "and no more than its share all the same"


def test_a_fixed_clock_hears_nothing() -> None:
    fixed = after_a_cut(replace(PACE, on_demand=False))
    loud = Seen(output_s=0.04, busy=False, worked_s=1.0, committed=True)
    assert isinstance(fixed.look(0.049, loud), Wait)
    assert fixed.look(0.050, loud) == Cut(Why.CLOCK)


def test_a_fixed_clock_that_is_late_makes_up_for_half() -> None:
    fixed = after_a_cut(replace(PACE, on_demand=False))  # the next one is due at 0.05
    fixed.cut(0.09, 0.092)
    assert isinstance(fixed.look(0.114, QUIET), Wait)
    assert fixed.look(0.115, QUIET) == Cut(Why.CLOCK)


@given(
    pauses=st.lists(st.floats(0.0005, 0.05), min_size=20, max_size=60),
    busy=st.booleans(),
    share=st.floats(0.05, 1.0),
)
def test_the_vm_stands_still_for_no_more_than_its_share(pauses: list[float], busy: bool, share: float) -> None:
    """Whatever waits: a VM that always has something to say is cut as often as may be."""
    pace = replace(PACE, max_pause_share=share, gap_s=0.0)
    cadence, now, stood, began = Cadence(pace, 0.0), 0.0, 0.0, 0.0
    for pause in pauses:
        while isinstance(told := cadence.look(now, Seen(1.0, busy, 0.0, committed=True)), Wait):
            assert told.seconds > 0
            now += told.seconds + 1e-9
        began = now
        cadence.cut(began, began + pause)
        now, stood = began + pause, stood + pause
    assert stood - pauses[-1] <= share * began + 1e-6


@given(
    output_s=st.none() | st.floats(0, 10),
    busy=st.booleans(),
    worked_s=st.floats(0, 1),
    committed=st.booleans(),
    now=st.floats(0, 10),
)
def test_nothing_waits_for_ever(
    output_s: float | None, busy: bool, worked_s: float, committed: bool, now: float
) -> None:
    told = after_a_cut().look(now, Seen(output_s, busy, worked_s, committed))
    if isinstance(told, Wait):
        assert 0 < told.seconds <= PACE.epoch_max_s
        assert now < PACE.epoch_max_s or told.seconds <= SETTLE_S
