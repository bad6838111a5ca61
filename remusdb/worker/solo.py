# SPDX-License-Identifier: Apache-2.0
"""Going on without a backup: only the arbiter can allow it, since the backup may be taking over this moment.

Invariant: `deciding` is held from before the question is asked until its answer is definite; a session that the
agent would take up again waits for it, and finds itself ended when the answer was yes.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from remusdb.core.ownership import Claim, Ownership, Verdict, go_solo, open_session
from remusdb.core.pipeline import PrimaryState
from remusdb.core.terms import following
from remusdb.errors import ArbiterUnreachable, PeerRefused
from remusdb.threads import spawn
from remusdb.worker.learned import AGAIN, learn

if TYPE_CHECKING:
    from remusdb.worker.session import Session

log = logging.getLogger(__name__)

ASK_AGAIN_S = 0.25
SESSION_TRIES = 5
LOOK_S = 1.0  # whether the session is over


class Solo:
    """The decision of one session to go on alone."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._asked = threading.Event()
        self._why = ""
        self.deciding = threading.RLock()

    def start(self) -> None:
        """Be ready, with a thread: when the agent is lost, this host may have none to give any more. NoThread."""
        if self._session.order.goes_solo:
            spawn(self._live, name="solo")

    def consider(self, why: str) -> None:
        """The agent was lost: if it stays lost, ask the arbiter. Returns at once."""
        self._why = why
        self._asked.set()

    def _live(self) -> None:
        while not self._session.ended.is_set():
            if self._asked.wait(LOOK_S):
                self._asked.clear()
                self._run(self._why)

    def _lost(self) -> bool:
        session = self._session
        return session.pipeline.state is PrimaryState.HELD and not session.ended.is_set()

    def _run(self, why: str) -> None:
        session = self._session
        due = time.monotonic() + session.order.protection.solo_after_ms / 1000
        while self._lost() and time.monotonic() < due:
            time.sleep(0.02)
        while self._lost():
            try:
                if self._decide(why):
                    return
            except Exception as exc:  # task boundary: nobody else asks for this session, and a won claim stays won
                log.exception("the VM cannot go on alone yet")
                session.figures.set("held", f"{why}; going on alone failed: {exc}: output is held, it is tried again")
            time.sleep(ASK_AGAIN_S)

    def _decide(self, why: str) -> bool:
        """Ask once; whether there is nothing left to decide."""
        with self.deciding:
            if not self._lost():
                return True
            claim = self._ask()
            if claim.verdict is Verdict.WON:
                self._alone(why)
                return True
            if claim.verdict is Verdict.LOST and self._returned(claim.record):
                self._alone(f"{self._session.order.peer.name} could not run it")
                return True
        self._session.figures.set("held", f"{why}; {_why_not(claim)}: output is held")
        return False

    def _ask(self) -> Claim:
        """Until the answer is definite, or it is certain that nobody saw the question."""
        session = self._session
        assert session.arbiter is not None
        rule = go_solo(session.order.host, session.pipeline.term)
        claim = session.arbiter.claim(session.order.vm, rule)
        while claim.verdict is Verdict.UNKNOWN:
            session.figures.set("held", "the arbiter's answer was lost: output is held until it answers")
            time.sleep(ASK_AGAIN_S)
            claim = session.arbiter.claim(session.order.vm, rule)
            if claim.verdict is Verdict.UNREACHED:  # the first question may still have been seen
                claim = Claim(Verdict.UNKNOWN, None)
        return claim

    def _returned(self, record: Ownership | None) -> bool:
        """Whether the backup took over, could not run the VM, and gave it back: then it is ours, in a newer term."""
        session = self._session
        if record is None or record.owner or session.arbiter is None:
            return False
        if record.term != following(session.pipeline.term):  # what a takeover of this session puts, and nothing else
            return False
        term = following(record.term)
        rule = open_session(session.order.host, term)
        if session.arbiter.claim(session.order.vm, rule).verdict is not Verdict.WON:
            return False
        session.save(term=term)
        return True

    def _alone(self, why: str) -> None:
        session = self._session
        term = max(session.pipeline.term + 1, session.state.term)
        session.save(term=term)
        with session.lock:
            session.pipeline.solo(term)
        log.warning("the VM goes on alone in term %d: %s", term, why)
        session.ending.finish_apart("solo", f"the arbiter allows it to go on alone: {why}")


def _why_not(claim: Claim) -> str:
    if claim.verdict is Verdict.LOST and claim.record is not None:
        return f"by the arbiter {claim.record.owner or 'nobody'} owns the VM in term {claim.record.term}"
    return "the arbiter does not answer either"


def claim_session(session: Session, term: int) -> None:
    """Have the arbiter know of this session before anything of it counts. PeerRefused when another host owns the VM.

    That host's agent is the one to say that it runs the VM: a claim may have been won and never followed up.
    """
    if session.arbiter is None:
        return
    rule = open_session(session.order.host, term)
    for _ in range(SESSION_TRIES):
        claim = session.arbiter.claim(session.order.vm, rule)
        if claim.verdict is Verdict.WON:
            return
        if claim.verdict is Verdict.LOST:
            record = claim.record
            if record is not None and session.order.host in (record.owner, record.owner or record.previous):
                learn(session, record.term)
                raise PeerRefused(f"by the arbiter this host is in term {record.term} already", hint=AGAIN)
            owner, newer = (record.owner, record.term) if record else ("nobody", 0)
            raise PeerRefused(
                f"by the arbiter {owner or 'nobody'} owns VM {session.order.vm} since term {newer}",
                hint=f"see `remusdb status` there; if it was moved by hand, delete its key in etcd: "
                f"{session.order.arbiter.prefix if session.order.arbiter else ''}{session.order.vm}",
            )
        time.sleep(ASK_AGAIN_S)
    raise ArbiterUnreachable("the arbiter does not answer: the session is not begun", hint="is etcd running?")
