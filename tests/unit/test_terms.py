# SPDX-License-Identifier: Apache-2.0
"""One word takes a term a bounded way, and every distance is overcome by a few of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remusdb.core.ownership import go_solo, take_over
from remusdb.core.pipeline import Pipeline, PrimaryState
from remusdb.core.standby import Offer, Phase, Refusal, Standby
from remusdb.core.terms import HELLO_JUMP_MAX, JUMP_MAX, TERM_MAX, following, reached, too_far
from remusdb.errors import RefusedForSafety

TERMS = st.integers(0, TERM_MAX)


@given(TERMS, st.integers(0, 2**70))
def test_a_word_takes_a_term_forward_by_a_bounded_way(known: int, told: int) -> None:
    now = reached(known, told)
    assert known <= now <= min(known + JUMP_MAX, TERM_MAX)
    assert too_far(known, told) == (told > now)
    assert too_far(known, told) or now == max(known, told)


def test_who_is_far_behind_is_there_after_a_few_words() -> None:
    known, told = 3, 3 + 5 * JUMP_MAX
    for _ in range(5):
        assert too_far(known, told) or known + JUMP_MAX == told
        known = reached(known, told)
    assert known == told


def test_the_range_ends_with_an_error_that_says_what_to_do() -> None:
    assert following(TERM_MAX - 1) == TERM_MAX
    with pytest.raises(RefusedForSafety, match="the last one") as caught:
        following(TERM_MAX)
    assert "move vms/VM.json away" in caught.value.hint


def test_a_hello_of_any_term_leaves_the_vm_protectable() -> None:
    """Whatever one primary said, and however often: a primary that knows less is offered a term that it can take."""
    standby = Standby(term=5)
    for _ in range(100):
        answer = standby.hello("alpha", TERM_MAX, resume=False)
        assert isinstance(answer, Refusal) and not answer.fenced and not answer.renounced
        assert 0 < answer.learned <= standby.term + HELLO_JUMP_MAX
        standby.term = answer.learned  # durable, as the caller makes it
    offer = standby.hello("alpha", 5, resume=False)
    assert isinstance(offer, Offer) and offer.term == 6 + 100 * HELLO_JUMP_MAX
    known, tries = 5, 0
    while too_far(known, offer.term):  # what the primary does, try by try
        known, tries = reached(known, offer.term), tries + 1
    assert tries == 6, "sixteen words of a hostile primary are one of the agent's"


@pytest.mark.parametrize("state", [Phase.EMPTY, Phase.SEEDING, Phase.READY])
def test_a_term_far_ahead_begins_nothing(state: Phase) -> None:
    """The replica of a primary that begins again goes, as it would with a term that can be had."""
    standby = Standby()
    if state is not Phase.EMPTY:
        standby.begin("alpha", 3)
        standby.up()
    if state is Phase.READY:
        standby.commit(3, 1)
    assert isinstance(standby.hello("alpha", 3 + 2 * HELLO_JUMP_MAX, resume=False), Refusal)
    assert standby.phase is (Phase.EMPTY if state is Phase.EMPTY else Phase.ENDING)
    assert standby.term == (0 if state is Phase.EMPTY else 3)


def test_who_resumes_in_a_term_far_ahead_teaches_no_term() -> None:
    standby = Standby(term=5)
    answer = standby.hello("alpha", TERM_MAX, resume=True)
    assert isinstance(answer, Refusal) and answer.learned == 0 and standby.term == 5


def test_honest_distances_take_one_word() -> None:
    """A host restored from a backup of years ago, or that lost its state, on either side."""
    assert Standby(term=0).hello("alpha", 1_000_000, resume=False) == Offer(1_000_001, False, 0)
    assert Standby(term=10_000_000).hello("alpha", 0, resume=False) == Offer(10_000_001, False, 0)
    assert not too_far(0, 10_000_001)


def test_the_last_term_is_refused_and_nothing_is_changed() -> None:
    standby = Standby(term=TERM_MAX)
    for rule in (lambda: standby.hello("alpha", 0, resume=False), lambda: take_over("b", "a", TERM_MAX)):
        with pytest.raises(RefusedForSafety, match="the last one"):
            rule()
    with pytest.raises(RefusedForSafety, match="the last one"):
        go_solo("a", TERM_MAX)
    assert standby.term == TERM_MAX and standby.phase is Phase.EMPTY


def test_who_is_fenced_stays_so_whatever_the_term_and_can_be_protected_later() -> None:
    pipeline = Pipeline(4)
    pipeline.begin(3)
    pipeline.fence(TERM_MAX)
    assert pipeline.state is PrimaryState.FENCED and pipeline.term == 3 + JUMP_MAX
