# SPDX-License-Identifier: Apache-2.0
"""The planned move: stop the VM, commit one last epoch, ask the agent to go on.

    protected ─▶ VM stopped, last epoch cut ─▶ acknowledged ─▶ TAKEOVER ─▶ fenced: the VM runs there
                                                                  └─▶ DECLINE, or the session resumed: it runs on here

Invariant: that the VM was stopped for this is on the disk before it is, so that whoever comes after a crash starts
it again, unless another host owns it by then.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

from remusdb.core.messages import Notice, pack
from remusdb.core.pipeline import PrimaryState
from remusdb.core.wire import FrameType
from remusdb.errors import NotProtected, RefusedForSafety, RemusError

if TYPE_CHECKING:
    from remusdb.worker.session import Session

log = logging.getLogger(__name__)

COMMIT_S = 10.0  # the last epoch: cut, shipped, acknowledged
ANSWER_S = 30.0


class Handover:
    """A switchover of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._one = threading.Lock()
        self.stopped = False  # the VM stands still for this
        self._was_still = False  # it did so before
        self._declined = ""
        self.done = threading.Event()  # decided, either way

    def run(self) -> dict[str, Any]:
        """Move the VM to the agent's host; how long it took, in ms. RefusedForSafety when it runs on here."""
        session = self._session
        if session.pipeline.state is not PrimaryState.PROTECTED:
            raise NotProtected(
                f"VM {session.order.vm} is {session.figures.state}: only a protected VM can be moved",
                hint=f"see: remusdb status {session.order.vm}",
            )
        session.proof.require_not_refused()
        if not self._one.acquire(blocking=False):
            raise RefusedForSafety("a switchover is under way already")
        try:
            return self._run()
        finally:
            self._one.release()

    def _run(self) -> dict[str, Any]:
        session = self._session
        self._declined = ""
        self.done.clear()
        self._was_still = session.epochs.stays
        session.save(paused=not self._was_still)
        began = time.monotonic()
        self.stopped = True
        try:
            last = session.epochs.cut_last(COMMIT_S)
            if not self._committed(last):
                raise RefusedForSafety(f"epoch {last} was not acknowledged within {COMMIT_S:g} s")
        except RemusError as exc:
            self.cancel(str(exc))
            raise
        session.outbox.say(FrameType.TAKEOVER, pack(Notice("asked for on the primary")))
        decided = self.done.wait(ANSWER_S)
        took_ms = 1000 * (time.monotonic() - began)
        if session.fenced():
            return {"to": session.order.peer.name, "term": session.pipeline.term, "took_ms": round(took_ms, 1)}
        if decided:
            raise RefusedForSafety(
                f"{session.order.peer.name} does not take the VM over, it runs on here: {self._declined}"
            )
        raise RefusedForSafety(
            f"{session.order.peer.name} does not answer; the VM stays stopped until it does",
            hint=f"see: remusdb status {session.order.vm}",
        )

    def _committed(self, epoch: int) -> bool:
        session = self._session
        with session.lock:
            session.lock.wait_for(lambda: session.pipeline.committed >= epoch or session.over.is_set(), COMMIT_S)
        return session.pipeline.committed >= epoch and not session.over.is_set()

    def cancel(self, reason: str) -> None:
        """The agent cannot be taking over any more: the VM runs on here, epochs go on."""
        if self.stopped and not self._session.fenced():
            self._declined = reason
            self.undo()
            self._session.epochs.go_on()
            self.done.set()

    def undo(self) -> None:
        """Start the VM if it was stopped for this. Also where the session ends with the VM still here."""
        if self.stopped:
            if not self._was_still:
                self._start()
            self.stopped = False

    def undo_old(self) -> None:
        """A worker that died in the middle of a switchover left the VM stopped."""
        if self._session.state.paused:
            self._start()

    def _start(self) -> None:
        session = self._session
        if session.parts is not None:
            with contextlib.suppress(RemusError):
                session.parts.domain.qmp("cont")
        with contextlib.suppress(RemusError):
            session.save(paused=False)
