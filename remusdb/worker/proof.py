# SPDX-License-Identifier: Apache-2.0
"""What the agent says of its standby: whether QEMU there would take this VM's state at a takeover.

The agent tries it on a copy once the first epoch is committed. A refusal is `protect`'s; where nobody waits for an
answer (a session begun again automatically) the VM stays protected, and everybody is told what that is worth.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event

from msgspec.structs import replace

from remusdb.core.messages import Proof
from remusdb.errors import CannotProtect, RefusedForSafety
from remusdb.reasons import Code, Reason
from remusdb.wording import words
from remusdb.worker.journal import Journal
from remusdb.worker.memory_copy import Progress
from remusdb.worker.spec import ProtectionSpec

PROOF_S = 60.0  # starting a QEMU on the agent's host, and a load: each of it is bounded there, too
ENDING_S = 10.0
LOOK_S = 0.05
MOST_CHARACTERS = 1000  # of what the agent says; QEMU's words are fewer


class StandbyProof:
    """The last proof of one session's standby."""

    def __init__(self, spec: ProtectionSpec, journal: Journal, is_protected: Callable[[], bool]) -> None:
        self._asked, self._peer = spec.asked, spec.peer.name
        self._journal = journal
        self._is_protected = is_protected
        self._last: Proof | None = None
        self._told: Reason | None = None  # why it is not proven, as it is in the history
        self._waiting = True  # protect() has not come to its end

    def take(self, proof: Proof) -> None:
        """The agent tells. Called from the peer's thread; told again after each new connection."""
        self._last = replace(proof, reason=proof.reason[:MOST_CHARACTERS], hint=proof.hint[:MOST_CHARACTERS])
        if not self._waiting:
            self._note()

    def wait(self, progress: Progress, over: Event, ended: Event) -> None:
        """Until the agent has proven its standby, or the session is over; CannotProtect when QEMU there refuses."""
        progress("prove the standby", 0, 1, "load")
        end = time.monotonic() + PROOF_S
        while self._last is None and not over.wait(LOOK_S) and time.monotonic() < end:
            pass
        if over.is_set():
            ended.wait(ENDING_S)  # its end is in other hands; the state then says what became of it
            return
        last = self._last
        if last is not None and last.verdict == "refused" and self._asked:
            self._journal.tell("unproven", self._journal.metrics.state, refused(last, self._peer))
            raise CannotProtect(
                f"agent {self._peer}: QEMU there refuses to resume this VM: {last.reason}", hint=last.hint
            )
        self._show()

    def told(self) -> None:
        """protect() is done, which is in the history: so is, from here on, what the standby is worth."""
        self._waiting = False
        self._note()

    def require_not_refused(self) -> None:
        """RefusedForSafety where a switchover would end in a boot from the disks."""
        if self._last is not None and self._last.verdict == "refused":
            raise RefusedForSafety(words(refused(self._last, self._peer)), hint=self._last.hint)

    def _show(self) -> Reason | None:
        why = unproven(self._last, self._peer)
        self._journal.metrics.proof(self._last, why)
        return why

    def _note(self) -> None:
        why = self._show()
        if why != self._told and self._is_protected():
            self._told = why
            self._journal.tell("unproven" if why else "proven", "protected", why or Reason.of(Code.PROVEN))


def unproven(proof: Proof | None, peer: str) -> Reason | None:
    """Why the standby is not proven; None when it is."""
    if proof is None:
        return Reason.of(Code.UNPROVEN_SILENT, peer=peer, seconds=f"{PROOF_S:g}")
    if proof.verdict == "refused":
        return refused(proof, peer)
    if proof.verdict == "proven":
        return None
    return Reason.of(Code.UNPROVEN_UNABLE, why=proof.reason, hint=proof.hint)


def refused(proof: Proof, peer: str) -> Reason:
    """QEMU there would not resume this VM."""
    return Reason.of(Code.UNPROVEN_REFUSED, peer=peer, why=proof.reason, hint=proof.hint)
