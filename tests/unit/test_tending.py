# SPDX-License-Identifier: Apache-2.0
"""Whose word has a host put its own VM away: that of the host which has it, or the arbiter's. Nobody else's."""

from __future__ import annotations

from typing import Any

import pytest

from remusdb.core.messages import Standing
from remusdb.core.ownership import Ownership
from remusdb.host.reconcile import disputed, hearsay, superseded
from remusdb.names import VmName
from remusdb.state import VmState

ARMED = VmState(vm="vm", uuid="u", role="protected", term=5, owner="a", peer="b", armed=True, wanted=True)
FREE = VmState(vm="vm", uuid="u", role="solo", term=5, owner="a", peer="b", wanted=True)


def says(owner: str, term: int, uuid: str = "u", role: str = "promoted") -> Standing:
    return Standing(VmName("vm"), term, owner, role, "", uuid)


@pytest.mark.parametrize(
    ("state", "standing", "record", "owner"),
    [
        (ARMED, says("b", 6), None, "b"),
        (ARMED, says("b", 6, role="none"), None, "b"),  # it took over, and was unprotected there since
        (ARMED, says("b", 6, uuid=""), None, "b"),
        (ARMED, says("b", 6, uuid="another"), None, ""),
        (ARMED, says("b", 5), None, ""),
        (ARMED, says("c", 9), None, ""),  # hearsay: c is asked itself
        (ARMED, says("", 9), None, ""),
        (ARMED, None, None, ""),
        (FREE, says("b", 9), None, ""),  # nobody can have taken over from a host that is not armed
        (ARMED, None, Ownership("b", 6), ""),  # a claim that may never have been followed up
        (ARMED, None, Ownership("c", 8), "c"),
        (FREE, None, Ownership("c", 8), "c"),
        (ARMED, says("a", 5, role="standby"), Ownership("a", 8), ""),
    ],
)
def test_who_supersedes(state: VmState, standing: Standing | None, record: Ownership | None, owner: str) -> None:
    found = superseded("a", state, standing, record)
    assert (found.owner if found is not None else "") == owner


@pytest.mark.parametrize(
    ("standing", "named"),
    [(says("c", 9), "c"), (says("c", 5), ""), (says("b", 9), ""), (says("a", 9), ""), (says("c", 9, "another"), "")],
)
def test_who_is_to_be_asked_itself(standing: Standing, named: str) -> None:
    assert hearsay("a", ARMED, standing) == named


@pytest.mark.parametrize(
    ("standing", "found"),
    [
        (says("b", 9), True),
        (says("b", 5), True),  # both think so, in the same term: by an operator's word that was not true
        (says("b", 4), False),  # it was taken over from there: it will be quarantined there
        (says("b", 9, "another"), False),
        (says("c", 9), False),
    ],
)
def test_what_nobody_decides_but_an_operator(standing: Any, found: bool) -> None:
    assert disputed(FREE, standing) is found
