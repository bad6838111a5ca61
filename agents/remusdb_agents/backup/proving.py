# SPDX-License-Identifier: Apache-2.0
"""When a standby is proven, and who hears of it.

Owns what is known of the present session's standby. Invariant: what is told is of the machine that would be resumed;
a proof that outlived its session is dropped.

    first epoch committed ─▶ proof ─▶ proven, refused: again after an hour ─┐
                               ▲  └─▶ unable: told, tried again sooner ──────┤
                               └────────────────────────────────────────────┘
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from itertools import chain, repeat

from msgspec.structs import replace

from remusdb.control.status import StandbyStatus
from remusdb.core.messages import Proof
from remusdb.deadline import Deadline, poll_until
from remusdb.errors import NoThread
from remusdb.log import VmLog
from remusdb.reasons import Code, Reason
from remusdb.threads import spawn
from remusdb.wording import words
from remusdb_agents.backup.standby.proof import Prover

log = logging.getLogger(__name__)

RETRY_S = (30.0, 60.0, 300.0, 1800.0)  # a proof that was not possible is tried again; the last one repeats
AGAIN_S = 3600.0  # a guest that was started again may use what it did not use before
LOOK_S = 1.0


class Proving:
    """The proofs of one VM's standby."""

    def __init__(
        self,
        vm: str,
        host: str,
        current: Callable[[int], bool],
        say: Callable[[Reason], None],
        send: Callable[[Proof], None],
    ) -> None:
        """`current`: whether the standby of the session of this term would be resumed; `say`: to the history, why it is
        not proven; `send` to the primary that is connected."""
        self._vm, self._host, self._current, self._say, self._send = vm, host, current, say, send
        self._lock = threading.Lock()
        self._of = 0  # the session whose proofs these are
        self._last: Proof | None = None
        self._proven: Proof | None = None

    def begin(self, prover: Prover, term: int) -> None:
        """Prove this standby, in a thread: it is a new session's, and its first epoch was just committed."""
        with self._lock:
            self._of, self._last, self._proven = term, None, None
        try:
            spawn(self._run, prover, term, name=f"prove-{self._vm}")
        except NoThread as exc:
            VmLog(log, self._vm).error("the standby is not proven: %s", exc)
            self._take(term, Proof("unable", time.time_ns(), reason=str(exc), hint=exc.hint))

    def _run(self, prover: Prover, term: int) -> None:
        delays = chain(RETRY_S, repeat(RETRY_S[-1]))
        while self._current(term):
            self._prove(prover, term)
            unable = self._last is None or self._last.verdict == "unable"
            again = Deadline.after(next(delays) if unable else AGAIN_S)
            poll_until(lambda: not self._current(term), again, LOOK_S)

    def _prove(self, prover: Prover, term: int) -> None:
        try:
            prover.prove(lambda proof: self._take(term, proof))
        except Exception as exc:  # task boundary: whatever it was, the primary waits for a word
            VmLog(log, self._vm).exception("the proof of the standby failed")
            self._take(term, Proof("unable", time.time_ns(), reason=f"{type(exc).__name__}: {exc}"))

    def _take(self, term: int, proof: Proof) -> None:
        with self._lock:
            if term != self._of or not self._current(term) or (proof.verdict == "unable" and self._proven is not None):
                return  # the last one that could be tried is what counts
            before, self._last = self._last, proof
            if proof.verdict == "proven":
                self._proven = proof
        if proof.verdict != "proven" and (before is None or before.reason != proof.reason):
            self._say(unproven(proof, self._host))
        self._send(proof)

    def rehearsed(self, term: int, epoch: int, took_ms: float) -> None:
        """A rehearsal resumed this epoch: more than a proof."""
        self._take(term, Proof("proven", time.time_ns(), epoch, took_ms))

    def again(self) -> None:
        """Tell the primary, whose connection was made again, what is known."""
        last = self._last
        if last is not None and self._current(self._of):
            self._send(last)

    def add_to(self, status: StandbyStatus) -> StandbyStatus:
        """A status, and what is known of proofs."""
        last, proven = (self._last, self._proven) if self._current(self._of) else (None, None)
        return replace(
            status,
            proven_at_ns=proven.at_ns if proven else None,
            proven_epoch=proven.epoch if proven else None,
            proven_ms=proven.took_ms if proven else None,
            unproven=words(unproven(last, self._host)) if last and last.verdict != "proven" else "",
        )


def unproven(proof: Proof, host: str) -> Reason:
    """Why a standby on this host is not proven."""
    if proof.verdict == "refused":
        return Reason.of(Code.UNPROVEN_REFUSED, peer=host, why=proof.reason, hint=proof.hint)
    return Reason.of(Code.UNPROVEN_UNABLE, why=proof.reason, hint=proof.hint)
