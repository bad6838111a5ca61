# SPDX-License-Identifier: Apache-2.0
"""Who may let a VM speak: the record that the arbiter keeps, and the only ways in which it may change.

One record a VM: its owner and a term. Invariant: whoever wants to go on without the other's word must first change
the record from exactly the state in which both were last agreed; the arbiter's compare-and-swap lets one of them.

Sans-IO: each rule takes the record as it stands and gives the record to put in its place, or None: not allowed.
`Arbiter.claim` makes it so, or tells that somebody else was faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from remusdb.core.terms import Term, following
from remusdb.names import HostOrNobody


@dataclass(frozen=True)
class Ownership:
    """`owner` may let the VM speak since `term`. An empty owner: `previous` gave it to nobody but may have it back."""

    owner: HostOrNobody
    term: Term
    previous: HostOrNobody = ""


class Verdict(Enum):
    """What became of a claim."""

    WON = "won"
    LOST = "lost"  # the record does not allow it
    UNREACHED = "unreached"  # the arbiter was not reached, and never will see this claim (an earlier one, it still may)
    UNKNOWN = "unknown"  # the arbiter may have seen it: ask again until WON or LOST; UNREACHED settles nothing then


@dataclass(frozen=True)
class Claim:
    """The outcome, and the record as it was last seen (None: there is none, or nothing was seen)."""

    verdict: Verdict
    record: Ownership | None
    why: str = field(default="", compare=False)  # of UNREACHED and UNKNOWN


Rule = Callable[[Ownership | None], Ownership | None]


def open_session(host: str, term: int) -> Rule:
    """`host`, which runs the VM, begins a session of a newer `term` with a backup."""

    def rule(now: Ownership | None) -> Ownership | None:
        if now == Ownership(host, term):
            return now
        if now is not None and (now.term >= term or host not in (now.owner, now.owner or now.previous)):
            return None
        return Ownership(host, term)

    return rule


def take_over(host: str, owner: str, term: int) -> Rule:
    """`host`, whose replica is of the session of `owner` in `term`, takes the VM over."""
    return _step(Ownership(owner, term), Ownership(host, following(term)))


def go_solo(host: str, term: int) -> Rule:
    """`host` gives its backup of the session of `term` up, and goes on alone."""
    return _step(Ownership(host, term), Ownership(host, following(term)))


def give_back(host: str, owner: str, term: int) -> Rule:
    """`host` took over in `term` but could not run the VM: `owner` may have it again, in a newer term."""
    return _step(Ownership(host, term), Ownership("", term, previous=owner))


def _step(before: Ownership, after: Ownership) -> Rule:
    """From exactly `before`. A claim whose answer was lost finds `after` there already: it was won."""

    def rule(now: Ownership | None) -> Ownership | None:
        return after if now in (before, after) else None

    return rule
