# SPDX-License-Identifier: Apache-2.0
"""The rules by which the arbiter's record changes, each from every record it may find."""

from __future__ import annotations

import pytest

from remusdb.core.ownership import Ownership, Rule, give_back, go_solo, open_session, take_over

A5, A6, B6, A7 = Ownership("a", 5), Ownership("a", 6), Ownership("b", 6), Ownership("a", 7)
NOBODY6 = Ownership("", 6, previous="a")  # b took over in 6 and gave the VM back to a


@pytest.mark.parametrize(
    ("now", "allowed"),
    [
        (None, True),  # never protected, or released
        (Ownership("a", 4), True),
        (Ownership("", 4, previous="a"), True),
        (A6, False),  # a knows of a newer term itself: it must not go back
        (Ownership("b", 4), False),
        (Ownership("b", 5), False),
        (Ownership("", 4, previous="b"), False),
        (Ownership("", 5, previous="a"), False),
        (Ownership("b", 4, previous="a"), False),  # `previous` has no say while there is an owner
    ],
)
def test_who_may_open_a_session(now: Ownership | None, allowed: bool) -> None:
    assert open_session("a", 5)(now) == (A5 if allowed else None)


STEPS = [
    pytest.param(take_over("b", "a", 5), A5, B6, id="take_over"),
    pytest.param(go_solo("a", 5), A5, A6, id="go_solo"),
    pytest.param(give_back("b", "a", 6), B6, NOBODY6, id="give_back"),
]
OTHERS = [
    None,
    Ownership("a", 4),
    Ownership("b", 5),
    Ownership("c", 6),
    A7,
    Ownership("b", 7),
    Ownership("", 6, previous="c"),
    Ownership("", 7, previous="a"),
    Ownership("a", 5, previous="b"),
    Ownership("b", 6, previous="a"),
]


@pytest.mark.parametrize(("rule", "before", "after"), STEPS)
def test_a_step_starts_from_exactly_one_record(rule: Rule, before: Ownership, after: Ownership) -> None:
    assert rule(before) == after
    for other in {*OTHERS, A5, A6, B6, NOBODY6} - {before, after}:
        assert rule(other) is None, other


@pytest.mark.parametrize(("rule", "before", "after"), [*STEPS, pytest.param(open_session("a", 5), None, A5, id="open")])
def test_a_claim_whose_answer_was_lost_is_won_when_asked_again(
    rule: Rule, before: Ownership | None, after: Ownership
) -> None:
    assert rule(rule(before)) == after


def test_takeover_and_solo_exclude_each_other() -> None:
    takeover, solo = take_over("b", "a", 5), go_solo("a", 5)
    assert solo(takeover(A5)) is None
    assert takeover(solo(A5)) is None


def test_two_backups_do_not_both_take_over() -> None:
    assert take_over("c", "a", 5)(take_over("b", "a", 5)(A5)) is None


def test_what_was_given_back_is_its_owners_again_in_a_newer_term() -> None:
    assert open_session("a", 6)(NOBODY6) is None
    assert open_session("b", 7)(NOBODY6) is None
    assert open_session("a", 7)(NOBODY6) == A7
    assert take_over("b", "a", 5)(NOBODY6) is None  # b cannot change its mind


def test_who_owns_the_vm_may_begin_anew_whatever_became_of_its_session() -> None:
    """The way out when a host lost count of its own terms: a session of a newer one ends what was open before."""
    begun = open_session("a", 9)(A7)
    assert begun == Ownership("a", 9)
    assert take_over("b", "a", 7)(begun) is None
