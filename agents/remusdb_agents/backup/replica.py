# SPDX-License-Identifier: Apache-2.0
"""One protected VM on the backup, for whoever has to do with it: its sessions, the ticker, operators, other hosts.

What is decided about it is core/backup.py's; it is performed in performer.py, event by event, at the VM's desk.py. An
idle one has no thread and nothing that is not in its state file.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from typing import Any

from remusdb.control import ProgressFn
from remusdb.control.api import Export, Exported, Forgotten, Rehearsed, TakenOver
from remusdb.control.status import StandbyStatus
from remusdb.core.backup_effects import Outcome
from remusdb.core.backup_events import (
    Asker,
    Cause,
    CopySilent,
    Event,
    Forget,
    Hailed,
    Lost,
    NotStarted,
    Recover,
    Stop,
    TakeOver,
    TakeoverFailed,
)
from remusdb.core.messages import Hello, Refuse, Standing, Welcome
from remusdb.core.standby import Phase
from remusdb.core.wire import Frame
from remusdb.deadline import Deadline, poll_until
from remusdb.errors import NotProtected, PeerUnreachable, RefusedForSafety
from remusdb.log import VmLog
from remusdb.quietly import NOISY
from remusdb.reasons import Code, Reason
from remusdb.transport.stream import FrameStream
from remusdb.wording import words
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.desk import Desk
from remusdb_agents.backup.errands import Errands
from remusdb_agents.backup.frames import take
from remusdb_agents.backup.hello_checks import refusal
from remusdb_agents.backup.holding import Holding
from remusdb_agents.backup.lookout import Lookout
from remusdb_agents.backup.performer import Performer
from remusdb_agents.backup.rehearsal.run import Wanted
from remusdb_agents.backup.standby.here import fitted

log = logging.getLogger(__name__)

LOOK_S = 0.02
LOOK_AGAIN_S = 0.25  # after a takeover that was refused
CLOSE_S = 30.0


class Replica:
    """One VM's replica on this host. Any thread may call."""

    def __init__(self, vm: str, context: Context) -> None:
        """UnreadableState."""
        self.vm, self.context = vm, context
        self._here = Holding(vm, context)
        self._core = self._here.core
        self._desk = Desk(self._core, self._here.read)
        errands = Errands(self._here, self._desk)
        self._proving = errands.proving
        self._desk.staff(Performer(self._here, self._begin_switch).perform, errands.begin)
        self._lookout = Lookout(context.config.failover)
        self._numbers = itertools.count(1)  # of what is asked for

    # --- what it is ---

    def log(self, log: logging.Logger) -> VmLog:
        """For lines about this VM."""
        return self._here.log(log)

    @property
    def phase(self) -> Phase:
        """Where it stands just now."""
        return self._core.phase

    @property
    def peer(self) -> str:
        """The other host of the pair, as far as is known."""
        return self._core.now.durable.peer

    @property
    def stream(self) -> FrameStream | None:
        """The connection that feeds it."""
        return self._here.hearing.stream

    @property
    def unfinished(self) -> bool:
        """Whether an agent that is gone left this VM in the middle of something."""
        found, asked = self._core.unfinished
        return found or (asked and self.context.arbiter is not None)

    @property
    def idle(self) -> bool:
        """Whether all that there is of it is in the state file. A promoted VM's metrics are not."""
        return not self._core.busy and self._desk.idle and not self._lookout.trying and self.stream is None

    def standing(self) -> Standing:
        """What this host is to the VM, for another host that asks before it does anything."""
        self._desk.reread()
        with self._desk.turn:
            return self._core.standing()

    def status(self) -> StandbyStatus:
        """What `remusdb status` is told of this standby."""
        self._desk.reread()
        with self._desk.turn:
            return self._proving.add_to(self._here.status(self._lookout.limit_ms, self._lookout.datagrams))

    # --- the session (called by its receiving thread) ---

    def greet(self, stream: FrameStream, hello: Hello) -> Welcome | Refuse:
        """Answer a HELLO. For a new session the standby is started here, which takes seconds.

        Task boundary: whatever happens, it is an answer, and what had been begun is given up.
        """
        here = self._here
        line = here.lines.enter(stream)
        try:
            if not hello.resume:
                hello = fitted(hello, self.context.config)
            self.post(Hailed(line, stream.peer_name, hello))
        except Exception as exc:
            self.post(NotStarted(line, str(exc), refusal(exc, self.vm, self.context.name)))
        answer = here.answers.pop(line)
        if isinstance(answer, Refuse):
            here.lines.leave(stream)
        else:
            self._lookout.follow(hello.heartbeat_ms)
        return answer

    def welcomed(self, stream: FrameStream, welcome: Welcome, told: list[int]) -> None:
        """WELCOME went out: in its initial sync the primary waits to hear what the images hold, after what it heard."""
        with self._desk.turn:
            feeds = self._core.follows(self._here.lines.number(stream), welcome.term)
            if feeds and self.phase is Phase.SEEDING and self._here.machine is not None:
                self._here.machine.bases.tell(stream, welcome.term, told)
        if welcome.resumed:
            self._proving.again()

    def take(self, stream: FrameStream, frame: Frame) -> bool:
        """One frame of the session; False when the session is over."""
        goes_on = take(self._here, self._desk, stream, frame)
        if not goes_on:
            self._here.lines.leave(stream)
        return goes_on

    def lost(self, stream: FrameStream, reason: str, hopeless: bool = False) -> None:
        """The session broke: the replica stays and waits for the primary, an incomplete one for a while.

        `hopeless`: to take the session up again would break it again; the replica goes, and the primary is told.
        """
        lines = self._here.lines
        self.post(Lost(lines.number(stream), reason, hopeless))
        lines.leave(stream)

    # --- takeovers, and whoever else asks for something ---

    def promote(self, why: Reason, heard: float | None = None, *, word: bool = False, by: Asker = "agent") -> TakenOver:
        """Take over, and give what was measured.

        `heard`: the last sign of life on which silence was judged; a newer one calls it off. `word`: an operator's word
        that the primary is dead stands for the arbiter's.
        """
        done = self._take_over(self._request(why, "order", by, heard=heard, word=word))
        if done.error is not None:
            raise done.error
        assert done.taken is not None
        taken = done.taken
        return TakenOver(term=taken.term, epoch=taken.epoch, resume_ms=taken.resume_ms, how=words(taken.how))

    def _request(self, why: Reason, cause: Cause, by: Asker = "agent", **more: Any) -> TakeOver:
        silent_ms = 1000 * (time.monotonic() - self._here.hearing.heard())
        number, arbiter = next(self._numbers), self.context.arbiter is not None
        return TakeOver(number, cause, why, by, time.time_ns(), silent_ms, arbiter=arbiter, **more)

    def _take_over(self, asked: TakeOver) -> Outcome:
        self.post(asked)
        return self._here.outcomes.pop(asked.number)

    def _begin_switch(self, why: Reason) -> None:
        self._desk.spawn(lambda: self._switch(why), f"switchover-{self.vm}")

    def _switch(self, why: Reason) -> None:
        asked = self._request(why, "switchover", "operator")
        try:
            self._take_over(asked)
        except Exception as exc:  # task boundary: the primary waits for an answer
            self.log(log).error("the switchover failed", exc_info=exc, extra=NOISY)
            self.post(TakeoverFailed(exc, asked))

    def look(self) -> None:
        """Whether the primary is silent for too long; what follows from it is done in a thread of its own."""
        hearing = self._here.hearing
        datagram_at = hearing.datagram_at  # first: it is never newer than the last sign of life
        heard = hearing.heard()
        seen = self._lookout.look(self.phase, heard, hearing.excused, datagram_at)
        if seen == "heard":
            self._here.troubles.clear("arbiter", Reason.of(Code.PRIMARY_HEARD, peer=self.peer))
        elif seen == "copy silent":
            self._lookout.apart(lambda: self.end_silent_copy(heard), self.vm)
        elif seen == "silent":
            self._lookout.apart(lambda: self._silent(heard), self.vm)

    def end_silent_copy(self, heard: float) -> None:
        """The primary was not heard for the patience that an initial sync has, since `heard`: it goes."""
        patience_ms = self.context.config.failover.copy_patience_ms
        self.post(CopySilent(self._core.now.session_term, patience_ms, heard))

    def _silent(self, heard: float) -> None:
        """The primary has not been heard since `heard`."""
        why = Reason.of(Code.PRIMARY_SILENT, peer=self.peer, silence_ms=self._lookout.limit_ms)
        asked = self._request(why, "silence", heard=heard)
        if isinstance(self._take_over(asked).error, RefusedForSafety):
            time.sleep(LOOK_AGAIN_S)

    def beat(self) -> None:
        """Tell the primary that this agent lives. Waits for nobody."""
        stream, term = self.stream, self._core.now.standby.term
        if stream is not None:
            with contextlib.suppress(PeerUnreachable):
                stream.beat(term)

    def rehearse(self, tcp_port: int | None, seconds: float, progress: ProgressFn) -> Rehearsed:
        """Resume a copy of the last committed state, look at it, throw it away. NotProtected when there is none."""
        with self._desk.turn:
            my, machine = self._core.now, self._here.machine
            refused, term = my.standby.promotable(), my.standby.term
            wanted = Wanted(seconds, tcp_port, list(my.addresses))
        if refused is not None or machine is None:
            raise NotProtected(f"{self.vm} cannot be rehearsed here: {refused or 'there is no replica here'}")
        result = machine.rehearsals.run(wanted, term, progress)
        self._proving.rehearsed(term, result.epoch, result.took_ms)
        return result

    def export(self, asked: Export, progress: ProgressFn) -> Exported:
        """The disks of the last committed state as files. NotProtected when there is none."""
        with self._desk.turn:
            my, machine = self._core.now, self._here.machine
            refused, term = my.standby.promotable(), my.standby.term
        if refused is not None or machine is None:
            raise NotProtected(f"{self.vm} cannot be exported here: {refused or 'there is no replica here'}")
        return machine.exports.run(asked, term, progress)

    def forget(self, *, lose_replica: bool) -> Forgotten:
        """Let any listed host protect a VM of this name, with any UUID, to here. RefusedForSafety where it is not safe.

        `lose_replica`: the operator's word that a whole replica, whose primary is not connected, is not needed.
        """
        here = self._here
        asked = Forget(next(self._numbers), lose_replica, self._lookout.trying)
        self.post(asked)
        error = here.outcomes.pop(asked.number).error
        if error is not None:
            raise error
        self.log(log).info("an operator ran `remusdb forget`")
        return Forgotten(vm=self.vm, quarantined_disks=here.quarantined_disks, moved=here.moved)

    def recover(self) -> None:
        """At the agent's start: an earlier one's replica is gone with it, its takeover is finished or given back."""
        self.post(Recover(self.context.arbiter is not None))

    def close(self) -> None:
        """The daemon ends: a standby goes, a promoted VM stays, a takeover under way is waited for."""
        poll_until(lambda: not self.phase.takes_over, Deadline.after(CLOSE_S), LOOK_S)
        self.post(Stop())

    def post(self, event: Event) -> None:
        """It happened. What follows from it is done when this returns."""
        self._desk.post(event)
