# SPDX-License-Identifier: Apache-2.0
"""One protected VM on the backup: its term, its standby, the session that feeds it, and the takeover.

Owns everything of the VM on this host. Invariants: a term is on disk before it is used; an ACK is sent only for
an epoch that `core.Standby` committed; promotion resumes exactly the last committed epoch, or does not happen.

    empty ─hello▶ seeding ─epoch 1▶ ready ─silence, switchover or `remusdb failover`▶ (deciding ▶) promoted
      ▲              │                │
      └── lost, bye, broken ◀─────────┘   (the agent then says RENOUNCE: it cannot take over)

Whoever runs the VM on this host owns its state file; this class reads it anew whenever it has no replica itself.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path
from typing import Any

from remusdb import __version__
from remusdb.core.messages import Hello, Notice, Refuse, Standing, Welcome, pack, unpack
from remusdb.core.standby import Refusal, Standby, StandbyState
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import CannotProtect, PeerUnreachable, RefusedForSafety, RemusError
from remusdb.history import Author, Event, EventName
from remusdb.state import OWNING, Role
from remusdb.transport.stream import FrameStream
from remusdb_agents import takeover
from remusdb_agents.context import Context
from remusdb_agents.inbox import BULK, Inbox, WholeEpoch
from remusdb_agents.machine import Machine
from remusdb_agents.silence import SilenceWatch

log = logging.getLogger(__name__)

LOOK_S = 0.02
BEAT_S = 0.05
LOOK_AGAIN_S = 0.25  # after a takeover that was refused
CLOSE_S = 30.0


class Replica:
    """One VM's replica on this host."""

    def __init__(self, vm: str, context: Context) -> None:
        self.vm = vm
        self._context = context
        self._config = context.config
        self._store = context.store
        self._state = context.store.load(vm)
        self._core = self._remembered()
        self._reason = self._state.reason or "no session yet"
        self._lock = threading.RLock()
        self._greeting = threading.RLock()  # a session begins or ends: one at a time
        self._machine: Machine | None = None
        self._session_term = 0  # of the session that fed the replica; promotion does not change it
        self._inbox = Inbox(self._config.limits.epoch_max_bytes)
        self._stream: FrameStream | None = None
        self._last_heard = time.monotonic()
        self._owed: int | None = None  # the newest epoch whose ACK waits for the applier
        self._addresses: list[str] = []
        self._taking_over = threading.Event()
        for work in (self._watch, self._beat):
            threading.Thread(target=work, name=f"{work.__name__}-{vm}", daemon=True).start()

    def _remembered(self) -> Standby:
        state = self._state
        return Standby(state.term, state.role in OWNING, state.owner)

    def _refresh(self) -> None:
        """Without a replica of its own, what the host daemon of this machine did meanwhile is what counts."""
        with self._lock:
            if self._machine is None and not self._taking_over.is_set():
                self._state = self._store.load(self.vm)
                if self._core.state is not StandbyState.SEEDING:
                    committed, self._core = self._core.committed, self._remembered()
                    self._core.committed = committed  # a figure of what was, for status
                    self._reason = self._state.reason or self._reason

    def standing(self) -> Standing:
        """What this host is to the VM, for another host that asks before it does anything."""
        self._refresh()
        with self._lock:
            state = self._state
            return Standing(self.vm, self._core.term, self._core.owner or state.owner, state.role, self._reason)

    # --- the session (called by its receiving thread) ---

    def greet(self, stream: FrameStream, hello: Hello) -> Welcome | Refuse:
        """Answer a HELLO. For a new session the standby is started here, which takes seconds."""
        with self._greeting:
            self._refresh()
            refused = self._strange(stream, hello) or self._superseded(hello)
            if refused is not None:
                return refused
            with self._lock:
                answer = self._core.hello(hello.primary, hello.term, hello.resume)
                if isinstance(answer, Refusal):
                    return self._refuse(answer)
                self._drop_stream()
                self._inbox.clear()
            if not answer.resumed:
                try:
                    self._begin(answer.term, hello)
                except RemusError as exc:
                    self._give_up(str(exc))
                    if self._core.state is not StandbyState.PROMOTED:
                        return Refuse(reason=str(exc), hint=exc.hint, term=self._core.term, code=_code(exc))
            with self._lock:
                if self._core.state is StandbyState.PROMOTED:  # silence, or an operator, came first
                    return Refuse(reason="this host took the VM over just now", term=self._core.term, fenced=True)
                self._stream, self._last_heard = stream, time.monotonic()
                bases = None if answer.resumed or self._machine is None else self._machine.bases
                return Welcome(
                    version=__version__,
                    agent=self._config.agent.name,
                    term=answer.term,
                    committed=self._core.committed,
                    resumed=answer.resumed,
                    silence_ms=self._config.failover.silence_ms,
                    bases=bases.counts if bases else [],
                    base_seed=bases.seed if bases else 0,
                )

    def welcomed(self, stream: FrameStream, welcome: Welcome) -> None:
        """WELCOME went out: in a new session the primary now waits to hear what the images hold already."""
        with self._lock:
            if stream is self._stream and self._machine is not None and any(welcome.bases):
                self._machine.bases.tell(stream, welcome.term)

    def _refuse(self, answer: Refusal) -> Refuse:
        """Say no; a replica that the core renounced with it goes."""
        if self._core.state is StandbyState.EMPTY and self._machine is not None:
            self._give_up(answer.reason)
        code = "deciding" if self._core.state is StandbyState.DECIDING else "failed"
        return Refuse(answer.reason, term=answer.term, fenced=answer.fenced, renounced=answer.renounced, code=code)

    def _superseded(self, hello: Hello) -> Refuse | None:
        """This host ran the VM, and a host with a newer term protects it to here: the old one is put away first."""
        state = self._state
        unfinished = state.role == "fenced" and not state.put_away
        if hello.resume or hello.term <= state.term or not (state.role in OWNING or unfinished):
            return None
        try:
            self._context.yield_vm(self.vm, hello.primary, hello.term)
        except RemusError as exc:
            return Refuse(f"the VM that this host ran before is not put away: {exc}", exc.hint, term=state.term)
        self._refresh()
        return None

    def _strange(self, stream: FrameStream, hello: Hello) -> Refuse | None:
        """A primary that is not who it says, or a second one while the first is connected."""
        if hello.primary != stream.peer_name:
            return Refuse(reason=f"host {hello.primary} shows the certificate of {stream.peer_name}", code="preflight")
        if self._stream is not None and hello.primary != self._state.peer:
            return Refuse(reason=f"VM {self.vm} is being protected by host {self._state.peer}", code="preflight")
        if hello.resume:
            return None  # the session was agreed on already
        try:
            mine = self._context.cluster()
        except PeerUnreachable as exc:
            return Refuse(reason=f"{exc}", hint="bring the arbiter back")
        if mine != hello.arbiter:
            return Refuse(
                reason="the two hosts do not use the same arbiter: one would go on alone while the other takes over",
                hint="give host.toml and agent.toml of both hosts the same [arbiter], or none",
                code="preflight",
            )
        return None

    def take(self, stream: FrameStream, frame: Frame) -> bool:
        """One frame of the session; False when the session is over."""
        with self._lock:
            if stream is not self._stream or not self._core.accepts(frame.term):
                return False
            machine = self._machine
        assert machine is not None
        if frame.type in BULK and frame.epoch == 0:
            machine.applier.apply(frame)
        elif frame.type in BULK:
            self._inbox.add(frame)
        elif frame.type is FrameType.COMMIT:
            self._commit(stream, self._inbox.close(frame))
        elif frame.type is FrameType.BYE:
            self._bye(stream, frame)
            return False
        elif frame.type is FrameType.TAKEOVER:
            reason = unpack(Notice, frame.payload).reason
            threading.Thread(target=self._switch, args=(stream, reason), name="switchover", daemon=True).start()
        return True

    def lost(self, stream: FrameStream, reason: str, hopeless: bool = False) -> None:
        """The session broke: a complete replica stays and waits, an incomplete one goes, and the primary is told.

        `hopeless`: to take the session up again would break it again.
        """
        with self._lock:
            if stream is not self._stream:
                return
            self._last_heard = stream.last_heard
            self._stream = None
            self._inbox.clear()
            self._reason = f"session lost: {reason}"
            if self._core.state is not StandbyState.SEEDING and not hopeless:
                return
            machine = self._machine
        self._give_up(f"the session broke off: {reason}", stream, machine)

    def _begin(self, term: int, hello: Hello) -> None:
        """A new session: the term first, then a fresh standby. What was here before is given up."""
        with self._lock:
            if self._core.state is StandbyState.PROMOTED:
                raise RefusedForSafety("this host took the VM over just now")
            self._core.renounce()
            old, self._machine = self._machine, None
        if old is not None:
            old.close(keep_images=True)
        with self._lock:
            self._save("standby", "the initial copy runs", term=term, owner=hello.primary, peer=hello.primary)
            self._core.begin(hello.primary, term)
            self._session_term = term
            self._owed = None
        self._tell("protect", "empty", f"host {hello.primary} protects it to here")
        kept = {target: Path(path) for target, path in self._state.kept.items()}
        machine = Machine(self._context, hello, self._moved, lambda exc: self._broken(exc, term), kept)
        with self._lock:
            self._machine = machine

    def _commit(self, stream: FrameStream, whole: WholeEpoch) -> None:
        with self._lock:
            new = whole.epoch > self._core.committed
            machine = self._machine
            if not self._core.commit(whole.term, whole.epoch) or machine is None:
                return
            self._addresses = whole.addresses
            self._reason = f"follows {self._state.peer} epoch by epoch"
            if new and whole.epoch == 1:
                self._tell("protected", "seeding", self._reason)
            if new:
                machine.applier.put(whole)
            if machine.applier.crowded:
                self._owed = whole.epoch
                return
            self._owed = None
        stream.send(FrameType.ACK, whole.term, whole.epoch)

    def _moved(self, whole: WholeEpoch) -> None:
        """The applier reached `whole`; an acknowledgement that waited for room goes out."""
        with self._lock:
            if whole.term != self._session_term:
                return  # an applier that outlived its session
            self._core.moved(whole.epoch)
            machine, stream, owed = self._machine, self._stream, self._owed
            if owed is None or stream is None or machine is None or machine.applier.crowded:
                return
            if not self._core.accepts(whole.term):
                return
            self._owed = None
        with contextlib.suppress(PeerUnreachable):
            stream.send(FrameType.ACK, whole.term, owed)

    def _bye(self, stream: FrameStream, frame: Frame) -> None:
        notice = unpack(Notice, frame.payload)
        self._give_up(f"the primary ended protection: {notice.reason}", stream, forget=notice.forget)

    def _broken(self, exc: Exception, term: int) -> None:
        """The applier failed: the replica is torn, and the primary must know before anything else happens."""
        log.error("%s: replica broken: %s", self.vm, exc)
        with self._lock:
            stream, machine = self._stream, self._machine
            if term != self._session_term:
                return
        self._give_up(str(exc), stream, machine)

    # --- takeover ---

    def promote(
        self, why: str, heard: float | None = None, *, word: bool = False, by: Author = "agent"
    ) -> dict[str, Any]:
        """Take over: who may, term, last epoch applied, device state, resume, announcement. What was measured.

        `heard`: the last sign of life on which silence was judged; a newer one calls it off. `word`: an operator's
        word that the primary is dead stands for the arbiter's.
        """
        decided = time.time_ns()
        silent_ms = 1000 * (time.monotonic() - self._heard())
        owner, term = self._core.owner, self._core.term
        if not word:
            self._ask(owner, term)
        with self._lock:
            if heard is not None and self._heard() > heard:
                raise RefusedForSafety(f"{owner} was heard again")
            if self._machine is None or (self._core.owner, self._core.term) != (owner, term):
                raise RefusedForSafety(f"{self.vm} cannot be resumed here: {self._core.promotable() or 'changed'}")
            self._core.decide()
            self._taking_over.set()
        try:
            if not word and not self._won(owner, term):
                with self._lock:
                    self._core.stay()
                raise RefusedForSafety("the arbiter does not answer any more")
            return self._become(why, owner, term + 1, decided, silent_ms, by)
        finally:
            self._taking_over.clear()

    def _ask(self, owner: str, term: int) -> None:
        """Refuse before anything is at stake; a replica that the arbiter overruled is given up."""
        if self._core.state is StandbyState.READY:
            try:
                takeover.require_arbiter(self._context, self.vm, owner, term)
            except takeover.Overruled as exc:
                self._give_up(str(exc), self._stream)
                raise

    def _won(self, owner: str, term: int) -> bool:
        try:
            return takeover.win(self._context, self.vm, owner, term)
        except takeover.Overruled as exc:
            self._give_up(str(exc), self._stream)
            raise

    def _become(self, why: str, owner: str, term: int, decided: int, silent_ms: float, by: Author) -> dict[str, Any]:
        """This host has the VM: make it run."""
        with self._lock:
            times = {"decided_at_ns": decided, "resumed_at_ns": None}
            self._save("promoting", why, term=term, owner=self._context.name, **times)
            epoch = self._core.promote(term)
            self._core.owner = self._context.name
            machine = self._machine
            assert machine is not None
            self._drop_stream()
        log.warning("%s: taking over in term %d at epoch %d: %s", self.vm, term, epoch, why)
        self._tell("takeover", "ready", why, epoch=epoch, heard_ms_ago=silent_ms, by=by)
        try:
            how = takeover.run(machine, self.vm, lambda: self._core.applied == epoch)
        except Exception as exc:
            self._cannot_run(owner, term, exc)
            raise
        resumed = time.time_ns()
        machine.announce(self._addresses)
        with self._lock:
            self._machine = None
            with contextlib.suppress(RemusError):  # "promoting" on the disk means the same
                self._save("promoted", f"{why}; {how}", resumed_at_ns=resumed)
        self._context.admission.release(self.vm)
        self._tell("promoted", "promoting", f"{why}; {how}", epoch=epoch, by=by)
        return {"term": term, "epoch": epoch, "resume_ms": (resumed - decided) / 1e6, "how": how}

    def _cannot_run(self, owner: str, term: int, exc: Exception) -> None:
        """Neither resumed nor booted: the old owner may have the VM again, if it is still there."""
        log.error("%s: cannot be run here: %s", self.vm, exc)
        with self._lock:
            machine, self._machine = self._machine, None
            self._core.give_back(owner)
            self._save("none", f"takeover failed, the VM was not started: {exc}", owner=owner)
        self._tell("failed", "promoting", self._reason)
        if machine is not None:
            machine.close(keep_images=True)
        self._context.admission.release(self.vm)
        hand = threading.Thread(target=takeover.hand_back, args=(self._context, self.vm, owner, term), daemon=True)
        hand.start()

    def _switch(self, stream: FrameStream, reason: str) -> None:
        """The primary stopped its VM and asks this side to go on; without a yes it goes on itself."""
        try:
            self.promote(f"switchover: {reason}", by="operator")
        except Exception as exc:  # task boundary
            log.exception("%s: switchover declined", self.vm)
            with contextlib.suppress(PeerUnreachable):
                stream.send(FrameType.DECLINE, self._session_term, 0, pack(Notice(str(exc))))

    def _watch(self) -> None:
        watch = SilenceWatch(self._config.failover.silence_ms / 1000)
        while True:
            time.sleep(LOOK_S)
            heard = self._heard()
            silent = watch.look(time.monotonic(), heard)
            if silent and self._config.failover.automatic and self._core.state is StandbyState.READY:
                try:
                    self.promote(f"{self._state.peer} was silent for {self._config.failover.silence_ms} ms", heard)
                except RefusedForSafety as exc:
                    self._reason = f"{self._state.peer} is silent, but this host does not take over: {exc}"
                    time.sleep(LOOK_AGAIN_S)
                except Exception as exc:  # task boundary: this thread is the only one that sees the silence
                    log.exception("%s: takeover failed", self.vm)
                    self._reason = f"takeover failed: {exc}"

    def _heard(self) -> float:
        """time.monotonic() of the primary's last sign of life."""
        stream = self._stream
        return stream.last_heard if stream is not None else self._last_heard

    def _beat(self) -> None:
        """Tell the primary that this agent lives; in a thread of its own, as a send may block."""
        while True:
            time.sleep(BEAT_S)
            stream, term = self._stream, self._core.term
            if stream is not None:
                with contextlib.suppress(PeerUnreachable):
                    stream.send(FrameType.HEARTBEAT, term, 0)

    # --- the rest ---

    def status(self) -> dict[str, Any]:
        """StandbyStatus, see docs/architecture.md."""
        self._refresh()
        with self._lock:
            core, state, heard = self._core, self._state, self._heard()
            waiting = core.state in (StandbyState.SEEDING, StandbyState.READY, StandbyState.DECIDING)
            return {
                "vm": self.vm,
                "role": "promoted" if core.state is StandbyState.PROMOTED else "standby",
                "state": core.state.value,
                "reason": self._reason,
                "peer": state.peer,
                "owner": core.owner or state.owner,
                "term": core.term,
                "committed": core.committed,
                "applied": core.applied,
                "primary_silence_ms": round(1000 * (time.monotonic() - heard)) if waiting else None,
                "kept": state.kept,
                "decided_at_ns": state.decided_at_ns,
                "resumed_at_ns": state.resumed_at_ns,
            }

    def close(self) -> None:
        """The daemon ends: a standby goes, a promoted VM stays, a takeover under way is waited for."""
        end = time.monotonic() + CLOSE_S
        while self._taking_over.is_set() and time.monotonic() < end:
            time.sleep(LOOK_S)
        if self._core.state in (StandbyState.SEEDING, StandbyState.READY):
            self._give_up("the agent was stopped", self._stream)

    def _give_up(
        self, reason: str, stream: FrameStream | None = None, of: Machine | None = None, *, forget: bool = False
    ) -> None:
        """This side can no longer take over: that is durable before the primary is told, then the replica goes.

        The replica goes without the lock, for the applier, which is waited for, takes it; a new session waits.
        A replica that was promoted is the VM and stays; with `of`, only that machine's session is given up. With
        `forget`, its images go too, and this host does not know any more who owns the VM.
        """
        with self._greeting:
            with self._lock:
                if self._core.state is StandbyState.PROMOTED or (of is not None and of is not self._machine):
                    return
                was = self._core.state.value
                self._core.renounce()
                machine, self._machine = self._machine, None
                with contextlib.suppress(RemusError):  # a restarted agent has no replica anyway
                    self._save("none", reason, **({"owner": "", "kept": {}} if forget else {}))
                if stream is not None:
                    with contextlib.suppress(PeerUnreachable):
                        stream.send(FrameType.RENOUNCE, self._core.term, 0, pack(Notice(reason)))
                self._stream = None
            if machine is not None:
                machine.close(keep_images=not forget)
            self._context.admission.release(self.vm)
        if was != StandbyState.EMPTY.value:
            self._tell("renounced", was, reason)

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _save(self, role: Role, reason: str, **changes: Any) -> None:
        self._reason = reason
        self._state = self._store.update(self.vm, role=role, reason=reason, changed_at_ns=time.time_ns(), **changes)

    def _tell(
        self,
        event: EventName,
        was: str,
        reason: str,
        *,
        epoch: int | None = None,
        heard_ms_ago: float | None = None,
        by: Author = "agent",
    ) -> None:
        """Into the history, and to the hooks."""
        self._context.history.record(
            Event(
                vm=self.vm,
                at_ns=time.time_ns(),
                host=self._context.name,
                by=by,
                event=event,
                was=was,
                now=self._core.state.value,
                reason=reason,
                term=self._core.term,
                epoch=epoch if epoch is not None else self._core.committed,
                heard_ms_ago=heard_ms_ago,
                peer=self._state.peer,
            )
        )


def _code(exc: RemusError) -> str:
    """What kind of refusal this is to the primary: one that trying again may cure, or not."""
    return "preflight" if isinstance(exc, CannotProtect) else "failed"
