# SPDX-License-Identifier: Apache-2.0
"""How long a silence must be: by what the link has shown, never longer than the operator said."""

from __future__ import annotations

import pytest

from remusdb.config import HEARTBEATS_PER_SILENCE
from remusdb.core.patience import (
    CONNECTION_S,
    GAPS,
    LEARN_S,
    LEAST_DATAGRAMS_S,
    LEAST_S,
    MEMORY_S,
    Patience,
    sign_of_life,
)

MOST_S = 0.5


def shown(*gaps_s: float, heartbeat_s: float = 0.05, most_s: float = MOST_S) -> Patience:
    """A connection that was heard every 20 ms for long enough, but for these gaps."""
    patience = Patience(most_s)
    patience.begin(heartbeat_s)
    steady(patience, 100.0, LEARN_S + 0.1)
    now = 100.0 + LEARN_S + 0.1
    for gap_s in gaps_s:
        now += gap_s
        patience.heard(now)
    return patience


def steady(patience: Patience, since: float, for_s: float) -> None:
    for look in range(round(for_s / 0.02) + 1):
        patience.heard(since + look * 0.02)


def test_a_steady_link_is_waited_for_no_longer_than_a_short_cut_lasts() -> None:
    assert shown().limit_s() == LEAST_S
    assert LEAST_S > 0.3 + 0.1, "a short cut, and the heartbeat before it"


def test_a_link_with_gaps_is_given_a_multiple_of_the_longest() -> None:
    assert shown(0.05, 0.15, 0.02).limit_s() == pytest.approx(GAPS * 0.15)


def test_it_is_never_longer_than_the_operator_said() -> None:
    assert shown(0.4).limit_s() == MOST_S
    assert shown(most_s=0.2).limit_s() == 0.2, "nor where that is less than the least"


def test_heartbeats_are_counted_though_epochs_come_more_often() -> None:
    """A VM that is suspended sends no epoch: nothing but heartbeats from one moment to the next."""
    assert shown(heartbeat_s=0.15).limit_s() == pytest.approx(HEARTBEATS_PER_SILENCE * 0.15)


def test_a_connection_is_not_judged_before_it_has_shown_itself() -> None:
    patience = Patience(MOST_S)
    assert patience.limit_s() == MOST_S
    patience.begin(0.05)
    steady(patience, 100.0, LEARN_S - 0.1)
    assert patience.limit_s() == MOST_S
    steady(patience, 100.0 + LEARN_S - 0.1, 0.2)
    assert patience.limit_s() == LEAST_S
    patience.begin(0.05)
    patience.heard(200.0)
    assert patience.limit_s() == MOST_S, "another connection"


def test_the_time_between_two_connections_is_no_gap() -> None:
    patience = shown()
    patience.begin(0.05)
    steady(patience, 105.5, LEARN_S + 0.1)
    assert patience.limit_s() == LEAST_S


def test_a_gap_is_remembered_for_its_time_and_then_forgotten() -> None:
    patience = shown(0.15)
    ends = 100.0 + LEARN_S + 0.1 + 0.15
    steady(patience, ends, MEMORY_S - 1.5)
    assert patience.limit_s() == pytest.approx(GAPS * 0.15)
    steady(patience, ends + MEMORY_S - 1.5, 3.0)
    assert patience.limit_s() == LEAST_S


def test_what_is_told_twice_or_late_changes_nothing() -> None:
    patience = shown(0.15)
    before = patience.limit_s()
    patience.heard(101.0)
    patience.heard(100.0 + LEARN_S + 0.15)
    assert patience.limit_s() == before


def test_it_can_be_switched_off() -> None:
    patience = Patience(MOST_S, adapts=False)
    patience.begin(0.05)
    steady(patience, 100.0, LEARN_S + 1)
    assert patience.limit_s() == MOST_S


def test_the_memory_is_bounded() -> None:
    patience = Patience(MOST_S)
    for look in range(1000):
        patience.heard(100.0 + look)
    assert len(patience._gaps) <= MEMORY_S + 2


def with_datagrams(for_s: float, heartbeat_s: float = 0.1, missed_after_s: float = 0.0) -> Patience:
    """A connection that is heard by datagrams, each 20 ms; `missed_after_s`: one gap of 100 ms then."""
    patience = Patience(MOST_S)
    patience.begin(heartbeat_s)
    now = 100.0
    for look in range(round(for_s / 0.02) + 1):
        if missed_after_s and look == round(missed_after_s / 0.02):
            patience.heard(now + 0.05)  # over the connection
            now += 0.08
        now += 0.02
        patience.heard(now)
        patience.datagram(now)
    return patience


def test_datagrams_that_always_came_make_the_least_limit_shorter_and_a_short_cut_is_still_no_death() -> None:
    patience = with_datagrams(LEARN_S + 0.5)
    assert patience.datagrams and patience.limit_s() == LEAST_DATAGRAMS_S < LEAST_S
    assert LEAST_DATAGRAMS_S > 0.3 + 0.025, "a short cut, and the datagram before it"


def test_a_datagram_that_was_missed_has_to_be_made_good() -> None:
    assert with_datagrams(LEARN_S + 0.5, missed_after_s=3.0).limit_s() == LEAST_S
    assert with_datagrams(LEARN_S + 4.0, missed_after_s=3.0).limit_s() == LEAST_DATAGRAMS_S


def test_where_datagrams_stop_the_connection_alone_is_judged_as_before() -> None:
    """A firewall that is changed, a flood that leaves no room."""
    patience = with_datagrams(LEARN_S + 0.5)
    steady(patience, 100.0 + LEARN_S + 0.54, 0.2)
    assert not patience.datagrams and patience.limit_s() == LEAST_S


def test_datagrams_of_the_connection_before_say_nothing_of_this_one() -> None:
    patience = with_datagrams(LEARN_S + 0.5)
    patience.begin(0.1)
    patience.heard(106.0)
    assert not patience.datagrams and patience.limit_s() == MOST_S


def test_datagrams_stand_for_a_connection_that_says_nothing_and_not_for_ever() -> None:
    assert sign_of_life(100.0, 0.0) == 100.0, "there are none"
    assert sign_of_life(100.0, 100.5) == 100.5
    assert sign_of_life(100.0, 99.0) == 100.0
    assert sign_of_life(100.0, 500.0) == 100.0 + CONNECTION_S, "what it cuts comes no more"
