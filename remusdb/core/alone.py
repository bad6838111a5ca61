# SPDX-License-Identifier: Apache-2.0
"""Whether a VM may go on without its backup: only the arbiter can say, since the backup may be taking over this moment.

Invariant: a question that may have been seen is asked again until the answer is definite; only then is anything else
done. A claim that was won stays won.
"""

from __future__ import annotations

from dataclasses import dataclass

from remusdb.core.ownership import Claim, Ownership, Verdict
from remusdb.core.terms import following


@dataclass(frozen=True)
class Ask:
    """Ask now. `given_back`: for what the backup took over, could not run, and gave back."""

    given_back: bool


@dataclass(frozen=True)
class AskAgain:
    """Ask the same in a while: the answer is not definite."""


@dataclass(frozen=True)
class Won:
    """This host has the VM alone, in `term`. `given_back`: since the backup could not run it."""

    term: int
    given_back: bool


@dataclass(frozen=True)
class Held:
    """It has not, and the question is settled: output stays held. `by`: what the arbiter has, if it answers."""

    by: Ownership | None


class Alone:
    """The question of one session, in its term."""

    def __init__(self) -> None:
        self.given_back = False
        self._asked = False  # an answer was lost: the question may have been seen

    def said(self, term: int, claim: Claim) -> Ask | AskAgain | Won | Held:
        """What the arbiter's answer to a session of `term` means."""
        if claim.verdict is Verdict.UNKNOWN or (claim.verdict is Verdict.UNREACHED and self._asked):
            self._asked = True
            return AskAgain()
        if claim.verdict is Verdict.WON:
            self._asked = True  # until it was followed up, it must be asked again and not called off
            return Won(following(following(term)) if self.given_back else following(term), self.given_back)
        if claim.verdict is Verdict.LOST and not self.given_back and _is_free(claim.record, term):
            self.given_back, self._asked = True, False
            return Ask(given_back=True)
        self.given_back = self._asked = False
        return Held(claim.record if claim.verdict is Verdict.LOST else None)


def _is_free(record: Ownership | None, term: int) -> bool:
    """Whether the backup gave the VM back: what a takeover of this session puts there, and nothing else."""
    return record is not None and not record.owner and record.term == following(term)
