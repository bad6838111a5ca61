# SPDX-License-Identifier: Apache-2.0
"""How a session ends: in good order, by a failure, or with its VM.

Invariant: the gates are opened only after the agent's word (RENOUNCE), the arbiter's, or an operator's, or when
no epoch was ever shipped; and what was decided is on the disk after the deed, so that a death in between leaves a
VM that is called held, never a mute one that is not.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

from remusdb.core.messages import Notice, pack
from remusdb.core.pipeline import PrimaryState
from remusdb.core.wire import FrameType
from remusdb.errors import DevicesChanged, LibvirtAway, PeerUnreachable, RemusError, VmError
from remusdb.history import EventName
from remusdb.host.shutdown import is_marked
from remusdb.threads import apart
from remusdb.vm.autostart import autostart_back
from remusdb.vm.endwatch import NOT_TOLD

if TYPE_CHECKING:
    from remusdb.worker.resources import Parts
    from remusdb.worker.session import Session

log = logging.getLogger(__name__)

RENOUNCE_S = 5.0
DEAD_HINT = "stop the agent's host first, then say --peer-is-dead; or try again when the agent is back"
QEMU_END_S = 0.25  # after a failed cut: how long a QEMU that was killed may take to end
SHUTDOWN_S = 10.0  # and one that said that it shuts down, whose disks are flushed


class Ending:
    """The ends of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._finishing = threading.Lock()
        self._failing = threading.Lock()  # taken by the first failure and kept
        self.late: tuple[str, str] | None = None  # state and reason, once the agent gives its word
        self.in_copy = False  # it failed before the agent could take over: protect() cleans up

    def fail(self, exc: Exception) -> None:
        """Cutting or shipping cannot go on. A dead VM falls silent, so that the agent takes over. Once."""
        session = self._session
        if not self._failing.acquire(blocking=False):
            return
        session.failure = session.failure or exc
        with session.lock:  # an ACK that comes now must not change who cleans up
            seeding = self.in_copy = session.pipeline.state is PrimaryState.SEEDING
        event: EventName = "changed" if isinstance(exc, DevicesChanged) else "failed"
        session.over.set()
        session.epochs.stop()
        with session.lock:
            session.lock.notify_all()
        if seeding:
            session.enter("failed", f"{exc}", event)
            return  # protect() sees it and cleans up
        if self._vm_ends():  # not told before it is known: what broke first is not why
            if not self._ended_well():  # who wanted that, QEMU or libvirt must tell first
                session.peer.pause()  # at once: the agent begins to count
            self._vm_ended()
        else:
            # Not over yet: until the agent gives its word the output is held.
            session.enter("held", f"{exc}; output is held", event)
            self._in_good_order("solo", str(exc))

    def _vm_ends(self) -> bool:
        """Whether QEMU has ended, or ends now; one that said so is given more time."""
        parts = self._session.parts
        if parts is None:
            return False
        if parts.domain.ends_within(QEMU_END_S):
            return True
        return parts.end is not None and parts.end.coming and parts.domain.ends_within(SHUTDOWN_S)

    def _ended_well(self) -> bool:
        """Whether QEMU surely did not crash."""
        parts = self._session.parts
        return parts is not None and parts.end is not None and (parts.end.by_signal or parts.domain.exited_well())

    @staticmethod
    def _wanted_off(parts: Parts) -> bool:
        """Whether somebody wanted the VM off, by QEMU's own last word, or by what is seen of its end."""
        ended_well = parts.domain.exited_well()
        wanted = (parts.end is not None and parts.end.coming) or parts.domain.was_shut_down()
        if not wanted or parts.end is None:
            return wanted
        parts.end.await_word(ended_well)
        return parts.end.was_destroyed() if parts.end.by_signal else True

    def why(self, exc: BaseException) -> BaseException:
        """Why the initial copy failed: that its VM was shut down in it is the reason, not what broke first."""
        parts = self._session.parts
        if parts is None or parts.end is None or not self._vm_ends() or not self._wanted_off(parts):
            return exc
        return VmError(f"{parts.end.words}, during the initial copy")

    def _vm_ended(self) -> None:
        """QEMU is gone; heartbeats stopped already. Only if somebody wanted the VM off, the agent is told to let go."""
        session = self._session
        assert session.parts is not None
        shut_down, host_stops = self._wanted_off(session.parts), is_marked(session.order.run_dir)
        if shut_down and not host_stops:
            self._in_good_order("unprotected", session.parts.end.words if session.parts.end else NOT_TOLD)
        elif shut_down and session.order.protection.on_host_shutdown == "nothing":
            # Wanted still: the next boot protects it again.
            self._in_good_order("solo", "the VM was shut down with its host")
        else:
            session.peer.close()
            session.enter("failed", "QEMU died; the agent takes over when its silence limit is reached")
            session.ended.set()

    def _in_good_order(self, state: str, reason: str) -> None:
        """The agent gives its standby up first; without its word, output stays held."""
        session = self._session
        session.leaving = True
        self.late = (state, reason)  # first: the word may come at the very end of the wait
        session.outbox.say(FrameType.BYE, pack(Notice(reason)))
        if session.renounced.wait(RENOUNCE_S):
            self.finish(state, reason)
        else:
            reason = f"{reason}; and the agent does not answer: output is held, see `remusdb unprotect`"
            session.enter("held", reason, "held")
            session.solo.consider(reason)

    def finish_apart(self, state: str, reason: str) -> None:
        """`finish` in a thread of its own, if there is one: it waits for libvirt, which the peer's should not."""
        apart(self.finish, state, reason, name="finish")

    def finish(self, state: str, reason: str) -> None:
        """Nobody can take over (the agent's word, the arbiter's, an operator's): take all down, output flows. Once.

        `state`: 'solo' where protection is still wanted (it is begun anew by the host daemon), else 'unprotected'.
        """
        session = self._session
        with self._finishing:
            if session.ended.is_set():
                return
            with session.lock:
                session.pipeline.end()
            self._stop_work()
            session.handover.undo()
            try:
                if state == "unprotected":
                    self._restore_autostart()
                session.close_parts(remove_gates=True)
                # On record only now: a death in between must not leave a VM mute that nothing calls held.
                self._record(state, reason)
            finally:
                session.enter(state, reason, "solo" if state == "solo" else "unprotect")
                session.ended.set()

    def abandon(self, cause: BaseException) -> None:
        """protect() failed. Before the first epoch went out the agent cannot take over; after it, it must say so.

        A copy that had begun and lost the other host, or whose VM got other devices, is begun anew by the host daemon;
        what is wrong here is not.
        """
        session = self._session
        session.leaving = True
        if session.fenced():
            self._stop_work()
            session.close_parts(remove_gates=False)
            return session.ended.set()
        session.outbox.say(FrameType.BYE, pack(Notice("protect failed")))
        shipped = session.pipeline.captured > 0 or (session.was_armed and not session.greeted)
        safe = not shipped or session.renounced.wait(RENOUNCE_S)
        self._stop_work()
        again = session.was_wanted or isinstance(cause, PeerUnreachable | LibvirtAway | DevicesChanged)
        if safe:
            if not again:
                self._restore_autostart()
            session.close_parts(remove_gates=session.gated)
            if session.greeted or session.was_armed:
                self._record("solo" if again else "unprotected", str(cause))
        else:
            session.close_parts(remove_gates=False)
            reason = f"{session.figures.reason}; output is held until protect or unprotect succeeds"
            session.enter("held", reason, "held")
        session.ended.set()

    def _record(self, state: str, reason: str) -> None:
        session = self._session
        wanted = state == "solo"
        role = "solo" if wanted else "none"
        session.save(role=role, wanted=wanted, armed=False, gates=[], reason=reason, term=session.pipeline.term)

    def _restore_autostart(self) -> None:
        session = self._session
        if session.state.autostart and session.parts is not None:
            with contextlib.suppress(RemusError):
                session.parts.calls.call("autostart", autostart_back, session.parts.domain.handle, True)
                session.save(autostart=False)

    def _stop_work(self) -> None:
        session = self._session
        session.over.set()
        session.epochs.stop()
        session.peer.close()
        session.outbox.detach()  # of a session that failed before its peer was heard
