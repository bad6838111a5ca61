# SPDX-License-Identifier: Apache-2.0
"""One protected VM on the backup: its term, its standby, the session that feeds it, and the takeover.

Owns everything of the VM on this host. Invariants: a term is on disk before it is used; an ACK is sent only for
an epoch that `core.Standby` committed; promotion resumes exactly the last committed epoch, or does not happen.

    empty ─hello▶ seeding ─epoch 1▶ ready ─silence, switchover or `remusdb failover`▶ (deciding ▶) promoted
      ▲              │                │
      └── bye, broken ◀───────────────┘   (the agent then says RENOUNCE: it cannot take over)

Whoever runs the VM on this host owns its state file; this class reads it anew whenever it has no replica itself.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from remusdb import __version__
from remusdb.core.messages import Hello, Notice, Refuse, Standing, Taken, Welcome, pack, unpack
from remusdb.core.standby import Offer, Refusal, Standby, StandbyState
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import BadFrame, NotProtected, PeerUnreachable, RefusedForSafety, RemusError
from remusdb.history import Author, Event, EventName
from remusdb.names import require_name
from remusdb.quietly import NOISY
from remusdb.state import NOBODYS, OWNING, Role, VmState
from remusdb.threads import apart
from remusdb.transport.stream import FrameStream
from remusdb.troubles import Trouble, Troubles
from remusdb_agents.backup.catch_up import now_ns
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.disks.base_copy import Kept
from remusdb_agents.backup.greeting import refusal, refusal_at_the_door
from remusdb_agents.backup.inbox import BULK, Inbox, WholeEpoch
from remusdb_agents.backup.owed import Owed
from remusdb_agents.backup.proving import Proving
from remusdb_agents.backup.rehearsal.run import Progress, Wanted
from remusdb_agents.backup.seeding import Seeding
from remusdb_agents.backup.standby.here import fitted
from remusdb_agents.backup.standby.limits import ram_bytes
from remusdb_agents.backup.standby.machine import Machine, remove_leftover
from remusdb_agents.backup.takeover import Takeover

log = logging.getLogger(__name__)

LOOK_S = 0.02
CLOSE_S = 30.0


class Overtaken(RefusedForSafety):
    """While a HELLO was looked at, silence or an operator came first."""


class Replica:
    """One VM's replica on this host."""

    def __init__(self, vm: str, context: Context) -> None:
        self.vm = vm
        self.context = context
        self._config = context.config
        self._store = context.store
        self.state = context.store.load(vm)
        self.core = self._remembered()
        self.reason = self.state.reason or "no session yet"
        self.lock = threading.RLock()
        self.greeting = threading.RLock()  # a session begins or ends: one at a time
        self.machine: Machine | None = None
        self.runs_here = False  # this agent took the VM over, and it runs
        self.session_term = 0  # of the session that fed the replica; promotion does not change it
        self._inbox = Inbox(self._config.limits.epoch_max_bytes)
        self._seeding = Seeding()
        self.stream: FrameStream | None = None
        self._last_heard = time.monotonic()
        self.torn = ""  # why the replica cannot be resumed, found while the arbiter was asked
        self.troubles = Troubles(self._tell_trouble)
        self._owed = Owed()
        self._reading_again_at = 0.0  # time.monotonic(); until then nothing was read of the primary: it was not silent
        self._reading = True
        self.addresses: list[str] = []
        self.stays = False  # the VM stood still at the last epoch, and is to stand still after a takeover
        self.proving = Proving(self)
        self.takeover = Takeover(self)
        self._at_work = 0  # what is being done to it in threads of which nobody else knows

    @property
    def unfinished(self) -> bool:
        """Whether an agent that is gone left this VM in the middle of something."""
        state, asked = self.state, self.context.arbiter is not None
        return state.role in ("standby", "promoting") or (
            asked and state.role == "none" and state.peer != "" and state.owner == state.peer
        )

    @property
    def idle(self) -> bool:
        """Whether all that there is of it is in the state file. A promoted VM's figures are not."""
        if self.machine is not None or self.stream is not None or self._at_work or self.takeover.busy:
            return False
        return self.core.state is StandbyState.EMPTY

    def recover(self) -> None:
        """At the agent's start: an earlier one's replica is gone with it, its takeover is finished or given back."""
        if self.state.role == "standby":
            self.save("none", "the agent was restarted: there is no replica")
            self._apart(self._sweep, "sweep")
        if self.state.role in ("promoting", "none") and self.state.peer:
            self._apart(self.takeover.follow_up, "follow-up")

    def _apart(self, work: Callable[[], None], name: str) -> None:
        """In a thread of its own; until it ends, this replica is not forgotten."""

        def run() -> None:
            with self._working():
                begun.set()
                work()

        begun = threading.Event()
        with self._working():  # until the thread itself has said so
            apart(run, name=f"{name}-{self.vm}")
            begun.wait()

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """Until its end this replica is not forgotten: another one of the VM would be made beside it."""
        with self.lock:
            self._at_work += 1
        try:
            yield
        finally:
            with self.lock:
                self._at_work -= 1

    def _remembered(self) -> Standby:
        state = self.state
        return Standby(state.term, state.role in OWNING, state.owner)

    def _sweep(self) -> None:
        """Take away the standby that an agent which died left behind, unless a session has begun since."""
        with self.greeting:
            if self.machine is None:
                try:
                    remove_leftover(self._config.agent.libvirt_uri, self.vm)
                except RemusError as exc:  # the next session tries again
                    log.warning("%s: its old standby is still there: %s", self.vm, exc)

    def refresh(self) -> None:
        """Without a replica of its own, what the host daemon of this machine did meanwhile is what counts."""
        with self.lock:
            if self.machine is None and not self.takeover.under_way.is_set():
                self.state = self._store.load(self.vm)
                if self.core.state is not StandbyState.SEEDING:
                    committed, self.core = self.core.committed, self._remembered()
                    self.core.committed = committed  # a figure of what was, for status
                    self.reason = self.state.reason or self.reason

    def standing(self) -> Standing:
        """What this host is to the VM, for another host that asks before it does anything."""
        self.refresh()
        with self.lock:
            state = self.state
            undecided = self.takeover.under_way.is_set() or (state.role == "promoting" and not self.runs_here)
            owner = "" if undecided else self.core.owner or state.owner
            return Standing(require_name(self.vm), self.core.term, owner, state.role, self.reason, state.uuid)

    # --- the session (called by its receiving thread) ---

    def greet(self, stream: FrameStream, hello: Hello) -> Welcome | Refuse:
        """Answer a HELLO. For a new session the standby is started here, which takes seconds.

        Task boundary: whatever happens, it is an answer, and what had been begun is given up.
        """
        try:  # what takes long and is no business of the replica's does not hold up the HELLO of its owner
            if not hello.resume:
                hello = fitted(hello, self._config)
                self.refresh()
                refused = refusal_at_the_door(self, hello)
                if refused is not None:
                    return refused
        except Exception as exc:
            return self._failed(exc)
        with self.greeting:
            before = None
            try:
                self.refresh()
                answer = refusal(self, stream, hello) or self._agreed(hello)
                if isinstance(answer, Refuse):
                    return answer
                if not answer.resumed:
                    self.drop_stream()
                    before = self.state
                    self._begin(answer.term, hello)
                return self._welcome(stream, answer)
            except Overtaken as exc:  # it may yet fail: nobody is fenced for it, the primary asks again
                return Refuse(str(exc), term=self.core.term, code="deciding")
            except Exception as exc:
                if before is not None:
                    self.give_up(str(exc), before=before)
                return self._failed(exc)

    def _require_not_overtaken(self) -> None:
        """With the lock held."""
        if self.takeover.under_way.is_set() or self.core.state in (StandbyState.DECIDING, StandbyState.PROMOTED):
            raise Overtaken("this host takes the VM over just now")

    def _agreed(self, hello: Hello) -> Offer | Refuse:
        """What the protocol says to it; a new session is looked at before anything is given up for it."""
        if not hello.resume:
            self.context.admission.check(hello.vm, ram_bytes(hello))
        with self.lock:
            answer = self.core.hello(hello.primary, hello.term, hello.resume)
            if isinstance(answer, Offer):
                if answer.resumed:
                    self.drop_stream()
                    self._inbox.clear()
                return answer
        return self._refuse(answer)

    def _failed(self, exc: Exception) -> Refuse:
        if isinstance(exc, RemusError):
            return Refuse(reason=str(exc), hint=exc.hint, term=self.core.term, code="preflight")
        log.error("%s: a HELLO failed", self.vm, exc_info=exc, extra=NOISY)
        hint = f"its log tells what: journalctl -u remusdb-agent, on {self.context.name}"
        return Refuse("internal error of the agent", hint, term=self.core.term)

    def _welcome(self, stream: FrameStream, answer: Offer) -> Welcome:
        with self.lock:
            self._require_not_overtaken()
            self.stream, self._last_heard = stream, time.monotonic()
            self._owed.told(self.core.committed)
            taken = self._seeding.pause()
            bases = None if answer.resumed or self.machine is None else self.machine.bases
            return Welcome(
                version=__version__,
                agent=self._config.agent.name,
                term=answer.term,
                committed=self.core.committed,
                resumed=answer.resumed,
                silence_ms=self._config.failover.silence_ms,
                bases=bases.counts if bases else [],
                base_seed=bases.seed if bases else 0,
                taken=taken,
                copy_patience_ms=self._config.failover.copy_patience_ms,
            )

    def welcomed(self, stream: FrameStream, welcome: Welcome, told: list[int]) -> None:
        """WELCOME went out: in its initial copy the primary waits to hear what the images hold, after what it heard."""
        with self.lock:
            if stream is self.stream and self.machine is not None and self.core.state is StandbyState.SEEDING:
                self.machine.bases.tell(stream, welcome.term, told)
        if welcome.resumed:
            self.proving.tell(stream)

    def _refuse(self, answer: Refusal) -> Refuse:
        """Say no; a replica that the core renounced with it goes, without the lock: see `give_up`."""
        if self.core.state is StandbyState.EMPTY and self.machine is not None:
            self.give_up(answer.reason)
        if answer.learned:
            self.state = self._store.update(self.vm, term=answer.learned)
        code = "deciding" if self.core.state is StandbyState.DECIDING else "behind" if answer.learned else "failed"
        return Refuse(answer.reason, term=answer.term, fenced=answer.fenced, renounced=answer.renounced, code=code)

    def take(self, stream: FrameStream, frame: Frame) -> bool:
        """One frame of the session; False when the session is over."""
        with self.lock:
            current = stream is self.stream and self.core.accepts(frame.term)
            machine = self.machine
        if not current:
            with self.greeting:  # who gives the replica up tells the primary so, before the connection is closed
                return False
        assert machine is not None
        if frame.type in BULK and frame.epoch == 0:
            if self.core.committed:  # memory is exactly a committed epoch by now, and is only moved by the next
                raise BadFrame("a frame of the initial copy came after its end")
            taken = self._seeding.take(frame, lambda: stream is self.stream, machine.applier.apply)
            if taken is None:
                return False
            stream.send(FrameType.TAKEN, frame.term, 0, pack(Taken(taken)))
        elif frame.type in BULK:
            self._inbox.add(frame)
        elif frame.type is FrameType.COMMIT:
            self._commit(stream, self._inbox.close(frame, now_ns()))
        elif frame.type is FrameType.BYE:
            self._bye(stream, frame)
            return False
        elif frame.type is FrameType.TAKEOVER:
            self.takeover.ask(stream, unpack(Notice, frame.payload).reason)
        return True

    def lost(self, stream: FrameStream, reason: str, hopeless: bool = False) -> None:
        """The session broke: the replica stays and waits for the primary, an incomplete one for a while.

        `hopeless`: to take the session up again would break it again; the replica goes, and the primary is told.
        """
        with self.lock:
            if stream is not self.stream:
                return
            self._last_heard = stream.last_heard
            self.stream = None
            self._inbox.clear()
            self.reason = f"session lost: {reason}"
            if not hopeless:
                return
            machine = self.machine
        self.give_up(f"the session broke off: {reason}", stream, machine)

    def _begin(self, term: int, hello: Hello) -> None:
        """A new session: the term first, then a fresh standby. What was here before is given up."""
        with self.lock:
            self._require_not_overtaken()
            self.core.renounce()
            old, self.machine = self.machine, None
        if old is not None:
            old.close(keep_images=True)
        with self.lock:
            pair = {"owner": hello.primary, "peer": hello.primary, "uuid": hello.uuid}
            self.save("standby", "the initial copy runs", term=term, **pair)
            self._inbox.clear()
            self._seeding.begin()
            self.core.begin(hello.primary, term)
            self.session_term = term
            self._owed.told(0)
        self.tell("protect", "empty", f"host {hello.primary} protects it to here")
        formats = self.state.kept_formats
        kept = {target: Kept(Path(path), formats.get(target, "")) for target, path in self.state.kept.items()}
        machine = Machine(self.context, hello, self._moved, lambda exc: self._broken(exc, term), kept)
        with self.lock:
            self.machine = machine

    def _commit(self, stream: FrameStream, whole: WholeEpoch) -> None:
        with self.lock:
            new = whole.epoch > self.core.committed
            machine = self.machine
            self._owed.came(whole.epoch)
            if not self.core.commit(whole.term, whole.epoch) or machine is None:
                return
            self.addresses, self.stays = whole.addresses, whole.stays
            self.reason = f"follows {self.state.peer} epoch by epoch"
            if new and whole.epoch == 1:
                self.tell("protected", "seeding", self.reason)
            if new:
                machine.applier.put(whole)
            if new and whole.epoch == 1:
                self.proving.begin(machine)
            crowded = machine.applier.crowded
            self._owed.wait(whole.epoch) if crowded else self._owed.told(whole.epoch)
        if crowded:
            self._await_room(stream, machine)
        else:
            stream.send(FrameType.ACK, whole.term, whole.epoch)

    def _await_room(self, stream: FrameStream, machine: Machine) -> None:
        """Read no more of a primary that sends more than the applier takes; it is not silent meanwhile."""
        self._reading = False
        try:
            machine.applier.await_room(lambda: stream is self.stream)
        finally:
            self._reading_again_at, self._reading = time.monotonic(), True

    def _moved(self, whole: WholeEpoch) -> None:
        """The applier reached `whole`; an acknowledgement that waited for room goes out."""
        with self.lock:
            if whole.term != self.session_term:
                return  # an applier that outlived its session
            self.core.moved(whole.epoch)
            machine, stream, owed = self.machine, self.stream, self._owed.waiting()
            if owed is None or stream is None or machine is None or machine.applier.crowded:
                return
            if not self.core.accepts(whole.term):
                return
            self._owed.told(owed)
        with contextlib.suppress(PeerUnreachable):
            stream.send(FrameType.ACK, whole.term, owed)

    def _bye(self, stream: FrameStream, frame: Frame) -> None:
        notice = unpack(Notice, frame.payload)
        self.give_up(f"the primary ended protection: {notice.reason}", stream, forget=notice.forget)

    def _broken(self, exc: Exception, term: int) -> None:
        """The applier failed: the replica is torn, and the primary must know before anything else happens."""
        log.error("%s: replica broken: %s", self.vm, exc)
        with self.lock:
            stream, machine = self.stream, self.machine
            if term != self.session_term:
                return
        self.give_up(str(exc), stream, machine)

    # --- the rest ---

    def heard(self) -> float:
        """time.monotonic() of the primary's last sign of life."""
        if not self._reading:
            return time.monotonic()
        stream = self.stream
        return max(stream.last_heard if stream is not None else self._last_heard, self._reading_again_at)

    def end_silent_copy(self) -> None:
        """The primary was not heard for the patience that an initial copy has: it goes."""
        patience_ms = self._config.failover.copy_patience_ms
        machine, stream = self.machine, self.stream
        if self.core.state is StandbyState.SEEDING and machine is not None:
            self.give_up(f"{self.state.peer} was silent for {patience_ms} ms in the initial copy", stream, machine)

    def beat(self) -> None:
        """Tell the primary that this agent lives. Waits for nobody."""
        stream, term = self.stream, self.core.term
        if stream is not None:
            with contextlib.suppress(PeerUnreachable):
                stream.beat(term)

    def rehearse(self, tcp_port: int | None, seconds: float, progress: Progress) -> dict[str, Any]:
        """Resume a copy of the last committed state, look at it, throw it away. NotProtected when there is none."""
        with self.lock:
            refused, machine, term = self.core.promotable(), self.machine, self.core.term
            wanted = Wanted(seconds, tcp_port, list(self.addresses))
        if refused is not None or machine is None:
            raise NotProtected(f"{self.vm} cannot be rehearsed here: {refused or 'there is no replica here'}")
        result = machine.rehearsals.run(wanted, progress)
        self.proving.rehearsed(machine, result["epoch"], result["took_ms"])
        return {"vm": self.vm, "term": term, **result}

    def status(self) -> dict[str, Any]:
        """What `remusdb status` is told of this standby."""
        self.refresh()
        with self.lock:
            core, state, heard = self.core, self.state, self.heard()
            waiting = core.state in (StandbyState.SEEDING, StandbyState.READY, StandbyState.DECIDING)
            return {
                "vm": self.vm,
                "role": "promoted" if core.state is StandbyState.PROMOTED else "standby",
                "state": core.state.value,
                "reason": self.reason,
                "peer": state.peer,
                "owner": core.owner or state.owner,
                "term": core.term,
                "committed": core.committed,
                "applied": core.applied,
                "troubles": self.troubles.names,
                "primary_silence_ms": round(1000 * (time.monotonic() - heard)) if waiting else None,
                **self.proving.status(),
                "kept": state.kept,
                "decided_at_ns": state.decided_at_ns,
                "resumed_at_ns": state.resumed_at_ns,
            }

    def close(self) -> None:
        """The daemon ends: a standby goes, a promoted VM stays, a takeover under way is waited for."""
        end = time.monotonic() + CLOSE_S
        while self.takeover.under_way.is_set() and time.monotonic() < end:
            time.sleep(LOOK_S)
        if self.core.state in (StandbyState.SEEDING, StandbyState.READY):
            self.give_up("the agent was stopped", self.stream)

    def give_up(
        self,
        reason: str,
        stream: FrameStream | None = None,
        of: Machine | None = None,
        *,
        forget: bool = False,
        overruled: bool = False,
        before: VmState | None = None,
    ) -> None:
        """This side can no longer take over: that is durable before the primary is told, then the replica goes.

        The primary is told, and the replica goes, without the lock: a primary may not read, and the applier, which is
        waited for, takes it. A new session waits.
        A replica that was promoted is the VM and stays; with `of`, only that machine's session is given up. With
        `forget`, its images go too, and so does who owned it: who protects a VM of that name next may. While the
        arbiter decides, only its no ends the replica (`overruled`). `before`: of a session that came to nothing, what
        this host knew: a HELLO that failed makes nobody the owner.
        """
        with self._working(), self.greeting:
            with self.lock:
                if self.core.state is StandbyState.PROMOTED or (of is not None and of is not self.machine):
                    return
                if self.core.state is StandbyState.DECIDING and not overruled:
                    self.torn = reason  # the arbiter's answer may be yes already: the takeover ends it
                    return
                was = self.core.state.value
                self.core.renounce()
                machine, self.machine = self.machine, None
                with contextlib.suppress(RemusError):  # a restarted agent has no replica anyway
                    self.save(*_left(reason, before), **(NOBODYS if forget else _owned(before)))
                if forget or before is not None:
                    self.core.owner = self.state.owner
                term, self.stream = self.core.term, None
            if stream is not None:
                with contextlib.suppress(PeerUnreachable):
                    stream.send(FrameType.RENOUNCE, term, 0, pack(Notice(reason)))
            if machine is not None:
                machine.close(keep_images=not forget)
            self.context.admission.release(self.vm)
        if was != StandbyState.EMPTY.value:
            self.tell("renounced", was, reason)

    def drop_stream(self) -> None:
        """Hang up on the primary, if it is connected."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()

    def save(self, role: Role, reason: str, **changes: Any) -> None:
        """Make durable what this host is to the VM, and why; other fields of `VmState` as named."""
        self.reason = reason
        self.state = self._store.update(self.vm, role=role, reason=reason, changed_at_ns=time.time_ns(), **changes)

    def _tell_trouble(self, event: EventName, what: Trouble, reason: str) -> None:
        self.tell(event, self.core.state.value, reason, details={"what": what})

    def tell(self, event: EventName, was: str, reason: str, *, by: Author = "agent", **evidence: Any) -> None:
        """Into the history, and to the hooks. `evidence`: epoch, heard_ms_ago."""
        told: dict[str, Any] = {"epoch": self.core.committed, "heard_ms_ago": None} | evidence
        self.context.history.record(
            Event(
                vm=self.vm,
                at_ns=time.time_ns(),
                host=self.context.name,
                by=by,
                event=event,
                was=was,
                now=self.core.state.value,
                reason=reason,
                term=self.core.term,
                peer=self.state.peer,
                **told,
            )
        )


def _left(reason: str, before: VmState | None) -> tuple[Role, str]:
    """Role and reason once a replica is gone: a VM that was superseded here stays so."""
    return ("fenced", before.reason) if before is not None and before.role == "fenced" else ("none", reason)


def _owned(before: VmState | None) -> dict[str, Any]:
    return {} if before is None else {"owner": before.owner, "peer": before.peer, "uuid": before.uuid}
