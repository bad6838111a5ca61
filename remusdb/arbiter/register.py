# SPDX-License-Identifier: Apache-2.0
"""How a claim is made on a record that can be read and compared-and-swapped, each of which may fail half way.

A swap names the revision that it replaces, so it may be sent again: of all that name one revision, one at most applies.
"""

from __future__ import annotations

import logging
from typing import Protocol

from remusdb.core.ownership import Claim, Ownership, Rule, Verdict
from remusdb.errors import ArbiterSilent, ArbiterUnreachable

log = logging.getLogger(__name__)

TRIES = 5  # the rules let a record change hands only so often; then let the caller decide whether to ask again


class Register(Protocol):
    """One VM's record."""

    def read(self) -> tuple[Ownership | None, int]:
        """The newest record and its revision; None and 0 if there is none. ArbiterUnreachable."""

    def swap(self, revision: int, new: Ownership) -> bool:
        """Put `new` in the place of exactly that revision (0: nothing); False if it is not there any more.

        ArbiterUnreachable if this was not done and never will be; ArbiterSilent if that is not known.
        """


def claim(register: Register, rule: Rule) -> Claim:
    """Change the record as `rule` allows. Trouble is a verdict, not an exception."""
    seen: Ownership | None = None
    sent: int | None = None  # the revision of a swap of ours that may still apply
    why = "others change the record all the time"
    for _ in range(TRIES):
        try:
            seen, revision = _read(register)
            if sent != revision:  # what was sent has applied, or never can
                sent = None
            wanted = rule(seen)
            if wanted is None:
                return Claim(Verdict.LOST, seen)
            if wanted == seen or _swap(register, revision, wanted):
                return Claim(Verdict.WON, wanted)
        except ArbiterSilent as error:
            sent, why = revision, str(error)
        except ArbiterUnreachable as error:
            why = str(error)
            break
    return Claim(Verdict.UNREACHED if sent is None else Verdict.UNKNOWN, seen, why)


# Whoever claims has staked something on a verdict, so also what nobody thought of (no memory, no thread) is one.


def _read(register: Register) -> tuple[Ownership | None, int]:
    try:
        return register.read()
    except ArbiterUnreachable:
        raise
    except Exception as error:  # task boundary
        log.exception("the arbiter's record cannot be read")
        raise ArbiterUnreachable(f"the arbiter's record cannot be read: {type(error).__name__}: {error}") from error


def _swap(register: Register, revision: int, new: Ownership) -> bool:
    try:
        return register.swap(revision, new)
    except ArbiterUnreachable:
        raise
    except Exception as error:  # task boundary
        log.exception("a change of the arbiter's record failed")
        raise ArbiterSilent(f"a change of the arbiter's record failed: {type(error).__name__}: {error}") from error
