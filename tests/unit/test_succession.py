# SPDX-License-Identifier: Apache-2.0
"""Whose word makes a new owner: the table, and what holds for every combination."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remusdb.core.ownership import Ownership
from remusdb.core.succession import Known, Succession, begins, resumes

SERVE, QUARANTINE, RUNS_HERE, UNDECIDED, STRANGER = Succession

NEW = Known("b")
STANDBY = Known("b", 5, "a", "a")
GIVEN_BACK = Known("b", 5, "", "")  # unprotected, or forgotten by an operator
SUPERSEDED = Known("b", 7, "a", "a")
PROMOTED = Known("b", 6, "b", "a", owns=True, ran=True)
PROMOTING = Known("b", 6, "b", "a", owns=True)
ALONE = Known("b", 6, "b", "c", owns=True, ran=True)
PROTECTED = Known("b", 6, "b", "c", owns=True, ran=True, armed=True)
AT_HOME = Known("b", 6, "b", "c")  # it was protected from here, and is not any more


@pytest.mark.parametrize(
    ("known", "primary", "term", "record", "answer"),
    [
        (NEW, "a", 0, None, SERVE),
        (NEW, "a", 3, Ownership("a", 3), SERVE),
        (NEW, "a", 3, Ownership("", 3, "a"), SERVE),  # given back to it
        (NEW, "a", 3, Ownership("c", 4), STRANGER),
        (STANDBY, "a", 4, None, SERVE),  # its own late HELLO
        (STANDBY, "c", 99, None, STRANGER),  # whatever term it claims
        (STANDBY, "c", 7, Ownership("c", 7), SERVE),  # it took the VM over elsewhere, says the arbiter
        (STANDBY, "a", 5, Ownership("c", 7), STRANGER),  # and then the old owner is one no more
        (STANDBY, "c", 99, Ownership("a", 5), STRANGER),
        (GIVEN_BACK, "c", 0, None, SERVE),
        (SUPERSEDED, "a", 7, None, SERVE),
        (SUPERSEDED, "c", 9, None, STRANGER),
        (PROMOTED, "a", 5, None, RUNS_HERE),
        (PROMOTED, "a", 99, None, RUNS_HERE),  # nobody can have taken it over from here: it is not protected
        (PROMOTED, "c", 99, None, RUNS_HERE),
        (PROMOTED, "a", 8, Ownership("a", 8), QUARANTINE),
        (PROMOTED, "a", 8, Ownership("a", 5), RUNS_HERE),
        (PROMOTING, "a", 8, None, UNDECIDED),
        (PROMOTING, "a", 8, Ownership("a", 8), QUARANTINE),
        (ALONE, "c", 99, None, RUNS_HERE),
        (PROTECTED, "c", 7, None, QUARANTINE),  # its backup, which took it over
        (PROTECTED, "c", 6, None, RUNS_HERE),  # a late HELLO of before
        (PROTECTED, "a", 99, None, RUNS_HERE),  # a -> b -> c -> a with b dead: an operator's word is needed
        (PROTECTED, "c", 9, Ownership("b", 6), RUNS_HERE),  # the arbiter knows of no takeover
        (PROTECTED, "a", 9, Ownership("a", 9), QUARANTINE),
        (AT_HOME, "c", 99, None, STRANGER),
        (AT_HOME, "c", 9, Ownership("c", 9), QUARANTINE),
    ],
)
def test_who_may_begin(known: Known, primary: str, term: int, record: Ownership | None, answer: Succession) -> None:
    assert begins(known, primary, term, record) is answer


@pytest.mark.parametrize(
    ("known", "primary", "answer"),
    [
        (NEW, "a", SERVE),
        (STANDBY, "a", SERVE),
        (STANDBY, "c", STRANGER),
        (GIVEN_BACK, "c", SERVE),
        (PROMOTED, "a", RUNS_HERE),
        (PROTECTED, "c", RUNS_HERE),
        (PROMOTING, "a", UNDECIDED),
        (AT_HOME, "c", STRANGER),
    ],
)
def test_who_may_resume(known: Known, primary: str, answer: Succession) -> None:
    assert resumes(known, primary) is answer


HOSTS = st.sampled_from(["a", "b", "c"])
RECORDS = st.none() | st.builds(Ownership, st.sampled_from(["a", "b", "c", ""]), st.integers(0, 9), HOSTS)


@st.composite
def knowns(draw: Any) -> Known:
    term, peer = draw(st.integers(0, 9)), draw(st.sampled_from(["a", "c"]))
    if draw(st.booleans()):
        ran = draw(st.booleans())
        return Known("b", term, "b", peer, owns=True, ran=ran, armed=ran and draw(st.booleans()))
    return Known("b", term, draw(st.sampled_from(["", "a", "b", "c"])), peer)


@given(knowns(), st.sampled_from(["a", "c"]), st.integers(0, 1 << 62), RECORDS)
def test_a_hello_alone_makes_nobody_the_owner(known: Known, primary: str, term: int, record: Ownership | None) -> None:
    found = begins(known, primary, term, record)
    by_record = record is not None and primary in (record.owner, record.previous if not record.owner else "")
    by_owner = record is None and not known.owns and known.owner in ("", primary)
    by_peer = record is None and known.owns and known.armed and primary == known.peer
    if found in (SERVE, QUARANTINE):
        assert by_record or by_owner or by_peer
    if found is QUARANTINE:
        assert known.owns or known.owner == known.host
    if found is RUNS_HERE:
        assert known.ran
    if not (by_record or by_peer):  # then no term that it claims changes the answer
        assert all(begins(known, primary, other, record) is found for other in (0, known.term + 1, 1 << 62))


def test_what_may_not_begin_may_not_resume() -> None:
    """Without an arbiter nobody gets further by saying that there was a session."""
    known = [NEW, STANDBY, GIVEN_BACK, SUPERSEDED, PROMOTED, PROMOTING, ALONE, PROTECTED, AT_HOME]
    for one, primary in itertools.product(known, "ac"):
        if resumes(one, primary) is SERVE:
            assert begins(one, primary, one.term, None) is SERVE
