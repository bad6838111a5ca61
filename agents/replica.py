# SPDX-License-Identifier: Apache-2.0
"""One protected VM on the backup: its term, its standby, the session that feeds it, and the takeover.

Owns everything of the VM on this host. Invariants: a term is on disk before it is used; an ACK is sent only for
an epoch that `core.Standby` committed; promotion resumes exactly the last committed epoch, or does not happen.

    empty ─hello▶ seeding ─epoch 1▶ ready ─silence, or `remusdb failover`▶ promoted
      ▲              │                │
      └── lost, bye, broken ◀─────────┘   (the agent then says RENOUNCE: it cannot take over)
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Any

from remusdb import __version__
from remusdb.config import AgentConfig
from remusdb.core.messages import Hello, Notice, Refuse, Welcome, pack, unpack
from remusdb.core.standby import Refusal, Standby, StandbyState
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import NotProtected, PeerUnreachable, RefusedForSafety, RemusError
from remusdb.host.state import SavedVm, StateStore
from remusdb.transport.stream import FrameStream
from remusdb_agents.inbox import BULK, Inbox, WholeEpoch
from remusdb_agents.machine import Machine
from remusdb_agents.rehearsal import Progress, Wanted
from remusdb_agents.silence import SilenceWatch

log = logging.getLogger(__name__)

LOOK_S = 0.02
BEAT_S = 0.05
APPLY_S = 30.0
PROMOTED_ROLES = ("promoting", "promoted")


class Replica:
    """One VM's replica on this host."""

    def __init__(self, vm: str, config: AgentConfig, store: StateStore) -> None:
        self.vm = vm
        self._config = config
        self._store = store
        saved = store.load(vm)
        memory = saved.saved if saved else {}
        self._peer = saved.peer if saved else ""
        self._core = Standby(int(memory.get("term", 0)), memory.get("role") in PROMOTED_ROLES)
        self._reason = str(memory.get("reason", "")) or "no session yet"
        self._lock = threading.RLock()
        self._greeting = threading.RLock()  # a session begins or ends: one at a time
        self._machine: Machine | None = None
        self._session_term = 0  # of the session that fed the replica; promotion does not change it
        self._inbox = Inbox(config.limits.epoch_max_bytes)
        self._stream: FrameStream | None = None
        self._last_heard = time.monotonic()
        self._owed: int | None = None  # the newest epoch whose ACK waits for the applier
        self._addresses: list[str] = []
        self._times: dict[str, int] = {k: v for k, v in memory.items() if k.endswith("_at_ns")}
        for work in (self._watch, self._beat):
            threading.Thread(target=work, name=f"{work.__name__}-{vm}", daemon=True).start()

    # --- the session (called by its receiving thread) ---

    def greet(self, stream: FrameStream, hello: Hello) -> Welcome | Refuse:
        """Answer a HELLO. For a new session the standby is started here, which takes seconds."""
        with self._greeting:
            with self._lock:
                answer = self._strange(stream, hello) or self._core.hello(hello.term, hello.resume)
                if isinstance(answer, Refuse):
                    return answer
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
                        return Refuse(reason=str(exc), hint=exc.hint, term=self._core.term, code="preflight")
            with self._lock:
                if self._core.state is StandbyState.PROMOTED:  # silence, or an operator, came first
                    return Refuse(reason="this host took the VM over just now", term=self._core.term, fenced=True)
                self._stream, self._last_heard = stream, time.monotonic()
                return Welcome(
                    version=__version__,
                    agent=self._config.agent.name,
                    term=answer.term,
                    committed=self._core.committed,
                    resumed=answer.resumed,
                    silence_ms=self._config.failover.silence_ms,
                )

    def _refuse(self, answer: Refusal) -> Refuse:
        """Say no; a replica that the core renounced with it goes."""
        if self._core.state is StandbyState.EMPTY and self._machine is not None:
            self._give_up(answer.reason)
        return Refuse(reason=answer.reason, term=answer.term, fenced=answer.fenced, renounced=not answer.fenced)

    def _strange(self, stream: FrameStream, hello: Hello) -> Refuse | None:
        """A primary that is not who it says, or a second one while the first is connected."""
        if hello.primary != stream.peer_name:
            return Refuse(reason=f"host {hello.primary} shows the certificate of {stream.peer_name}", code="preflight")
        if self._stream is not None and hello.primary != self._peer:
            return Refuse(reason=f"VM {self.vm} is being protected by host {self._peer}", code="preflight")
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
            old.close()
        with self._lock:
            self._peer = hello.primary
            self._save("standby", term, "the initial copy runs")
            self._core.begin(term)
            self._session_term = term
            self._owed, self._times = None, {}
        machine = Machine(self._config, hello, self._moved, lambda exc: self._broken(exc, term))
        with self._lock:
            self._machine = machine

    def _commit(self, stream: FrameStream, whole: WholeEpoch) -> None:
        with self._lock:
            new = whole.epoch > self._core.committed
            machine = self._machine
            if not self._core.commit(whole.term, whole.epoch) or machine is None:
                return
            self._addresses = whole.addresses
            self._reason = f"follows {self._peer} epoch by epoch"
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
        self._give_up(f"the primary ended protection: {unpack(Notice, frame.payload).reason}", stream)

    def _broken(self, exc: Exception, term: int) -> None:
        """The applier failed: the replica is torn, and the primary must know before anything else happens."""
        log.error("%s: replica broken: %s", self.vm, exc)
        with self._lock:
            stream, machine = self._stream, self._machine
            if term != self._session_term:
                return
        self._give_up(str(exc), stream, machine)

    # --- takeover ---

    def promote(self, why: str, heard: float | None = None) -> dict[str, Any]:
        """Take over: term, last epoch applied, device state, resume, announcement. What was measured.

        `heard`: the last sign of life on which silence was judged; a newer one calls it off.
        """
        with self._lock:
            if heard is not None and self._heard() > heard:
                raise RefusedForSafety(f"{self._peer} was heard again")
            decided = time.time_ns()
            refused = self._core.promotable()
            if refused is not None or self._machine is None:
                raise RefusedForSafety(f"{self.vm} cannot be resumed here: {refused}")
            term = self._core.term + 1
            self._times = {"decided_at_ns": decided}
            self._save("promoting", term, why)
            epoch = self._core.promote(term)
            machine = self._machine
            self._drop_stream()
        log.warning("%s: taking over in term %d at epoch %d: %s", self.vm, term, epoch, why)
        while not machine.wait_applied(APPLY_S):
            log.warning("%s: epochs are still being applied", self.vm)
        if self._core.applied != epoch:
            raise RemusError(f"{self.vm}: epoch {epoch} could not be applied, the VM was not resumed: {self._reason}")
        machine.resume()
        self._times["resumed_at_ns"] = time.time_ns()
        machine.announce(self._addresses)
        with self._lock, contextlib.suppress(RemusError):  # "promoting" on the disk means the same
            self._save("promoted", term, why)
        return {"term": term, "epoch": epoch, "resume_ms": (self._times["resumed_at_ns"] - decided) / 1e6}

    def _watch(self) -> None:
        watch = SilenceWatch(self._config.failover.silence_ms / 1000)
        while True:
            time.sleep(LOOK_S)
            heard = self._heard()
            silent = watch.look(time.monotonic(), heard)
            if silent and self._config.failover.automatic and self._core.state is StandbyState.READY:
                try:
                    self.promote(f"{self._peer} was silent for {self._config.failover.silence_ms} ms", heard)
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

    def rehearse(self, tcp_port: int | None, seconds: float, progress: Progress) -> dict[str, Any]:
        """Resume a copy of the last committed state, look at it, throw it away. NotProtected when there is none."""
        with self._lock:
            refused, machine, term = self._core.promotable(), self._machine, self._core.term
            wanted = Wanted(seconds, tcp_port, list(self._addresses))
        if refused is not None or machine is None:
            raise NotProtected(f"{self.vm} cannot be rehearsed here: {refused or 'there is no replica here'}")
        return {"vm": self.vm, "term": term, **machine.rehearsals.run(wanted, progress)}

    # --- the rest ---

    def status(self) -> dict[str, Any]:
        """StandbyStatus, see docs/architecture.md."""
        with self._lock:
            core, heard = self._core, self._heard()
            waiting = core.state in (StandbyState.SEEDING, StandbyState.READY)
            return {
                "vm": self.vm,
                "role": "promoted" if core.state is StandbyState.PROMOTED else "standby",
                "state": core.state.value,
                "reason": self._reason,
                "peer": self._peer,
                "term": core.term,
                "committed": core.committed,
                "applied": core.applied,
                "primary_silence_ms": round(1000 * (time.monotonic() - heard)) if waiting else None,
                **self._times,
            }

    def close(self) -> None:
        """The daemon ends: a standby goes, a promoted VM stays, a takeover under way is waited for."""
        end = time.monotonic() + APPLY_S
        while self._core.state is StandbyState.PROMOTED and self._machine is not None and time.monotonic() < end:
            if "resumed_at_ns" in self._times or "failed" in self._reason:
                return
            time.sleep(LOOK_S)
        if self._core.state in (StandbyState.SEEDING, StandbyState.READY):
            self._give_up("the agent was stopped", self._stream)

    def _give_up(self, reason: str, stream: FrameStream | None = None, of: Machine | None = None) -> None:
        """This side can no longer take over: that is durable before the primary is told, then the replica goes.

        The replica goes without the lock, for the applier, which is waited for, takes it; a new session waits.
        A replica that was promoted is the VM and stays; with `of`, only that machine's session is given up.
        """
        with self._greeting:
            with self._lock:
                if self._core.state is StandbyState.PROMOTED or (of is not None and of is not self._machine):
                    return
                self._core.renounce()
                machine, self._machine = self._machine, None
                with contextlib.suppress(RemusError):  # a restarted agent has no replica anyway
                    self._save("none", self._core.term, reason)
                if stream is not None:
                    with contextlib.suppress(PeerUnreachable):
                        stream.send(FrameType.RENOUNCE, self._core.term, 0, pack(Notice(reason)))
                self._stream = None
            if machine is not None:
                machine.close()

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _save(self, role: str, term: int, reason: str) -> None:
        self._reason = reason
        state = {"role": role, "term": term, "reason": reason, **self._times}
        self._store.save(SavedVm(self.vm, self._peer, state))
