# SPDX-License-Identifier: Apache-2.0
"""A term that another host, or the arbiter, told this one, where this one was far behind.

Invariant: a session begins only in a term that one word may take this host to (`core/terms.py`). Where it may not, what
may be is on the disk when the error is raised: whoever tries again is that much nearer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remusdb.core.terms import HELLO_JUMP_MAX, JUMP_MAX, reached, too_far
from remusdb.errors import PeerRefused
from remusdb.worker.greeting import AgentBehind, Greeting, greet

if TYPE_CHECKING:
    from remusdb.worker.session import Session

STEPS = 4 * JUMP_MAX // HELLO_JUMP_MAX  # so far a hostile agent puts an honest one behind in four sessions
AGAIN = "protect it again: each try goes a part of the way; was a host restored from an old backup?"


def greet_anew(session: Session) -> Greeting:
    """A new session with the agent, as `greet`; one whose term is behind is asked again while it comes nearer."""
    for _ in range(STEPS - 1):
        try:
            return greet(session.order, session.hello(False))
        except AgentBehind:
            continue
    return greet(session.order, session.hello(False))


def agree_on(session: Session, term: int) -> None:
    """The agent welcomes a session of this term. PeerRefused where it is too far from what this host knows."""
    known = session.state.term
    if too_far(known, term):
        learn(session, term)
        raise PeerRefused(f"agent {session.order.peer.name} is in term {term}, this host in {known}", hint=AGAIN)


def learn(session: Session, term: int) -> None:
    """Go as far towards a term as one word may take this host, so that a crash does not forget it."""
    known = reached(session.state.term, term)
    session.save(term=known)
    session.pipeline.term = known
