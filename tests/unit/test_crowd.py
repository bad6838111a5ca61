# SPDX-License-Identifier: Apache-2.0
"""Who has to go when too many have not shown who they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remusdb.transport.crowd import Crowd, source_of


def test_the_oldest_of_a_source_goes_for_its_newest() -> None:
    crowd: Crowd[int] = Crowd(3, 100)
    assert [crowd.enter("a", n) for n in range(5)] == [None, None, None, 0, 1]
    assert crowd.enter("b", 9) is None
    assert sorted(crowd) == [2, 3, 4, 9]


def test_in_all_too_many_the_source_with_most_loses() -> None:
    crowd: Crowd[str] = Crowd(10, 5)
    for member in ("b1", "a1", "a2", "a3", "c1"):
        assert crowd.enter(member[0], member) is None
    assert crowd.enter("d", "d1") == "a1"
    assert crowd.enter("d", "d2") == "a2"
    assert crowd.enter("e", "e1") == "d1", "of two with as many, the one that came first"


@pytest.mark.parametrize("sources", [1, 40, 1000])
def test_a_newcomer_outlives_many_that_come_after_it(sources: int) -> None:
    """However many there are, whoever comes is not among those that go for the next 30 others."""
    crowd: Crowd[int] = Crowd(32, 256)
    for number in range(2000):
        crowd.enter(f"source {number % sources}", number)
    crowd.enter("good", -1)
    gone = [crowd.enter(f"source {number % sources}", number) for number in range(2000, 2030)]
    assert -1 not in gone and -1 in list(crowd)


def test_whoever_is_done_makes_room() -> None:
    crowd: Crowd[int] = Crowd(1, 1)
    crowd.enter("a", 1)
    crowd.leave(1)
    crowd.leave(1)
    assert len(crowd) == 0 and crowd.shed() is None
    assert crowd.enter("b", 2) is None


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=200), st.integers(1, 4), st.integers(1, 9))
def test_the_bounds_hold_and_nothing_is_left_behind(moves: list[tuple[int, bool]], each: int, most: int) -> None:
    crowd: Crowd[int] = Crowd(each, most)
    here: dict[int, str] = {}
    for number, (source, leaves) in enumerate(moves):
        if leaves and here:
            gone = next(iter(here))
            crowd.leave(gone)
            del here[gone]
        else:
            here[number] = str(source)
            pushed_out = crowd.enter(str(source), number)
            assert pushed_out != number
            if pushed_out is not None:
                del here[pushed_out]
        assert list(crowd) == list(here) and len(crowd) <= most
        assert all(list(here.values()).count(source) <= each for source in here.values())
        assert set(crowd._members) == set(here.values())


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_what_counts_as_one_source(address: str, source: str) -> None:
    assert source_of(address) == source
