# SPDX-License-Identifier: Apache-2.0
"""How far a term may go, and how far one message may take it.

Terms only grow and are durable before they are used, so one that was taken on a peer's word is never given back. A
peer that could take a VM's term to the end of the range at one go would have made it unprotectable for good. So no word
takes a term further than a bound beyond what this host knows. A larger distance is not refused for good: each try goes
that far (`reached`), and the next one goes on from there. See docs/decisions/0015.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from remusdb.errors import RefusedForSafety

TERM_MAX: Final = 1 << 62  # a quarter of what the wire has room for: terms are added to, and i64 is what tools print
# What a primary takes from the agent that it asked, or from the arbiter: one word a session, which it begins itself. To
# the end of the range that is 2**38 sessions.
JUMP_MAX: Final = 1 << 24
# What an agent takes from a HELLO, of which a hostile primary can send hundreds a second: less, so that an honest one,
# which follows by JUMP_MAX, is faster. A session takes a term or two: at one every 30 s (as often as a failing one is
# tried again) a host that lost its state is a year behind.
HELLO_JUMP_MAX: Final = 1 << 20

Term = Annotated[int, Meta(ge=0, le=TERM_MAX)]


def reached(known: int, told: int, jump: int = JUMP_MAX) -> int:
    """The term that this host knows after it was told of `told`: as far as one word may take it, never back."""
    return max(known, min(told, known + jump, TERM_MAX))


def too_far(known: int, told: int, jump: int = JUMP_MAX) -> bool:
    """Whether `told` is further ahead of `known` than one word may take this host."""
    return told > reached(known, told, jump)


def following(term: int) -> int:
    """The next term. RefusedForSafety at the end of the range."""
    if term >= TERM_MAX:
        raise RefusedForSafety(
            f"term {term} is the last one there is",
            hint="end protection; move vms/VM.json away on both hosts, remove the arbiter's key, and protect again",
        )
    return term + 1
