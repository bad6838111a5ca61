# SPDX-License-Identifier: Apache-2.0
"""One word takes a term a bounded way, and every distance is overcome by a few of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remusdb.core.terms import JUMP_MAX, TERM_MAX, following, reached, too_far
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
