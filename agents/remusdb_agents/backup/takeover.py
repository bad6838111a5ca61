# SPDX-License-Identifier: Apache-2.0
"""The steps of a takeover: who may, then the VM.

    ask the arbiter (nothing is acknowledged from here on) ─▶ term on disk ─▶ last epoch applied ─▶ resume ─▶ announce
                   │ no: the primary went on alone                              │ standby dead: boot from its disks
                   ▼                                                            ▼ that fails too: give the VM back
              renounce                                                     nobody runs it here

Invariant: while it is under way no other host is told that this one has the VM; only one that runs it says so.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from shlex import quote
from typing import TYPE_CHECKING, Any

import libvirt

from remusdb.core.messages import Notice, pack
from remusdb.core.ownership import Ownership, Rule, Verdict, give_back, take_over
from remusdb.core.standby import StandbyState
from remusdb.core.terms import following
from remusdb.core.wire import FrameType
from remusdb.errors import NoThread, PeerUnreachable, RefusedForSafety, RemusError, VmError
from remusdb.history import Author
from remusdb.quietly import NOISY
from remusdb.threads import apart, spawn
from remusdb.transport.stream import FrameStream
from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.domain import connect
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.silence import SilenceWatch
from remusdb_agents.backup.standby.machine import Machine

if TYPE_CHECKING:
    from remusdb_agents.backup.replica import Replica

log = logging.getLogger(__name__)

APPLY_S = 30.0
CALL_S = 5.0
LOOK_AGAIN_S = 0.25  # after a takeover that was refused
ASK_AGAIN_S = 0.1
STILL = ", and stands still as it did there; to let it run: virsh resume {vm}"
WARM, COLD = "resumed where it was", "booted from its disks, the standby could not be resumed"


class ArbiterAway(RefusedForSafety):
    """Nobody can know now whether this host may take over."""


class Overruled(RefusedForSafety):
    """The arbiter gave the VM to somebody else: this replica is worth nothing any more."""


class Takeover:
    """The takeover of one replica."""

    def __init__(self, replica: Replica) -> None:
        failover = replica.context.config.failover
        self._replica = replica
        self._watch = SilenceWatch(failover.silence_ms / 1000)
        self._copy_watch = SilenceWatch(failover.copy_patience_ms / 1000)
        self._trying = threading.Event()  # a thread does what a silence asked for
        self._asked: tuple[FrameStream] | None = None  # who waits for the answer to a switchover, a new one each time
        self.under_way = threading.Event()

    def promote(
        self, why: str, heard: float | None = None, *, word: bool = False, by: Author = "agent"
    ) -> dict[str, Any]:
        """Take over: who may, term, last epoch applied, device state, resume, announcement. What was measured.

        `heard`: the last sign of life on which silence was judged; a newer one calls it off. `word`: an operator's
        word that the primary is dead stands for the arbiter's.
        """
        replica = self._replica
        decided = time.time_ns()
        silent_ms = 1000 * (time.monotonic() - replica.heard())
        owner, term = replica.core.owner, replica.core.term
        if not word:
            self._ask(owner, term)
        with replica.lock:
            if heard is not None and replica.heard() > heard:
                raise RefusedForSafety(f"{owner} was heard again")
            if replica.machine is None or (replica.core.owner, replica.core.term) != (owner, term):
                raise RefusedForSafety(f"{replica.vm} cannot be resumed here: {replica.core.promotable() or 'changed'}")
            replica.core.decide()
            self.under_way.set()
        try:
            if not word and not self._won(owner, term):
                raise ArbiterAway("the arbiter does not answer any more")
            return self._become(why, owner, following(term), decided, silent_ms, by)
        finally:
            with replica.lock:
                replica.core.stay()  # where the term could not be written: it is tried again
                torn, replica.torn = replica.torn, ""
            self.under_way.clear()
            if torn:
                replica.give_up(torn, replica.stream)

    def _ask(self, owner: str, term: int) -> None:
        """Refuse before anything is at stake; a replica that the arbiter overruled is given up."""
        replica = self._replica
        if replica.core.state is StandbyState.READY:
            try:
                require_arbiter(replica.context, replica.vm, owner, term)
            except Overruled as exc:
                replica.troubles.clear("arbiter", "the arbiter has answered")
                replica.give_up(str(exc), replica.stream)
                raise

    def _won(self, owner: str, term: int) -> bool:
        replica = self._replica
        try:
            return win(replica.context, replica.vm, owner, term, self._wait_for_arbiter)
        except Overruled as exc:
            replica.give_up(str(exc), replica.stream, overruled=True)
            raise
        finally:
            replica.troubles.clear("arbiter", "the arbiter has answered")

    def _wait_for_arbiter(self, problem: str) -> None:
        """The arbiter was asked, and does not say: nothing can be done but ask again."""
        replica = self._replica
        replica.reason = f"{replica.core.owner} is silent; whether this host may take over is asked again: {problem}"
        replica.troubles.say("arbiter", replica.reason)

    def _become(self, why: str, owner: str, term: int, decided: int, silent_ms: float, by: Author) -> dict[str, Any]:
        """This host has the VM: make it run."""
        replica = self._replica
        if replica.torn:
            torn = RemusError(f"the replica broke: {replica.torn}")
            self._cannot_run(owner, term, torn)
            raise torn
        with replica.lock:
            times = {"decided_at_ns": decided, "resumed_at_ns": None}
            replica.save("promoting", why, term=term, owner=replica.context.name, **times)
            epoch = replica.core.promote(term)
            replica.core.owner = replica.context.name
            machine = replica.machine
            assert machine is not None
            replica.drop_stream()
        log.warning("%s: taking over in term %d at epoch %d: %s", replica.vm, term, epoch, why)
        replica.tell("takeover", "ready", why, epoch=epoch, heard_ms_ago=silent_ms, by=by)
        try:
            how = run(machine, replica.vm, lambda: replica.core.applied == epoch, replica.stays)
        except Exception as exc:
            self._cannot_run(owner, term, exc)
            raise
        resumed = time.time_ns()
        machine.announce(replica.addresses)
        with replica.lock:
            replica.machine, replica.runs_here = None, True
            with contextlib.suppress(RemusError):  # "promoting" on the disk means the same
                replica.save("promoted", f"{why}; {how}", resumed_at_ns=resumed, autostart=False)
        replica.context.admission.release(replica.vm)
        replica.tell("promoted", "promoting", f"{why}; {how}", epoch=epoch, by=by)
        return {"term": term, "epoch": epoch, "resume_ms": (resumed - decided) / 1e6, "how": how}

    def _cannot_run(self, owner: str, term: int, exc: Exception) -> None:
        """Neither resumed nor booted: the old owner may have the VM again, if it is still there."""
        replica = self._replica
        log.error("%s: cannot be run here: %s", replica.vm, exc)
        with replica.lock:
            machine, replica.machine = replica.machine, None
            replica.core.give_back(owner)
            replica.core.term = max(replica.core.term, term)
            replica.save("none", f"takeover failed, the VM was not started: {exc}", owner=owner, term=term)
        replica.tell("failed", "promoting", replica.reason)
        if machine is not None:
            machine.close(keep_images=True)
        replica.context.admission.release(replica.vm)
        apart(hand_back, replica.context, replica.vm, owner, term, name=f"hand-back-{replica.vm}")

    def follow_up(self) -> None:
        """At the agent's start: a takeover in whose middle an earlier agent died is finished, or given back."""
        replica = self._replica
        state, context = replica.state, replica.context
        if state.role == "promoting":
            if runs(context.config.agent.libvirt_uri, replica.vm):
                with replica.lock:
                    replica.save("promoted", state.reason, resumed_at_ns=state.resumed_at_ns or time.time_ns())
            else:  # epochs that were only in that agent's memory are lost: the replica must not run
                self._cannot_run(state.peer, state.term, RemusError("the agent died in the middle of it"))
        elif context.arbiter is not None and state.owner == state.peer:
            # A claim of that agent may have been won after its end.
            hand_back(context, replica.vm, state.peer, state.term + 1)

    def ask(self, stream: FrameStream, reason: str) -> None:
        """The primary stopped its VM and asks this side to go on; without a yes it goes on itself.

        That is done in a thread, of which there is one: who asks again meanwhile gets the same answer.
        """
        with self._replica.lock:
            first, self._asked = self._asked is None, (stream,)
        if first:
            try:
                spawn(self._switch, reason, name=f"switchover-{self._replica.vm}")
            except NoThread as exc:
                self._decline(str(exc))

    def _switch(self, reason: str) -> None:
        try:
            self.promote(f"switchover: {reason}", by="operator")
            self._asked = None
        except Exception as exc:  # task boundary
            trace = not isinstance(exc, RemusError)
            log.warning("%s: switchover declined: %s", self._replica.vm, exc, exc_info=trace, extra=NOISY)
            self._decline(str(exc))

    def _decline(self, why: str) -> None:
        asked = self._asked
        while asked is not None:
            with contextlib.suppress(PeerUnreachable):
                asked[0].send(FrameType.DECLINE, self._replica.session_term, 0, pack(Notice(why)))
            with self._replica.lock:
                self._asked = asked = None if self._asked is asked else self._asked

    @property
    def busy(self) -> bool:
        """Whether a takeover is under way, or tried."""
        return self._trying.is_set() or self.under_way.is_set() or self._asked is not None

    def look(self) -> None:
        """Whether the primary is silent for too long; what follows from it is done in a thread of its own."""
        replica, failover = self._replica, self._replica.context.config.failover
        heard, now = replica.heard(), time.monotonic()
        silent, copy_silent = self._watch.look(now, heard), self._copy_watch.look(now, heard)
        state = replica.core.state
        if not silent and state is StandbyState.READY:
            replica.troubles.clear("arbiter", f"{replica.state.peer} is heard again")
        if self._trying.is_set():
            return
        if copy_silent and state is StandbyState.SEEDING:
            self._try(replica.end_silent_copy)
        elif silent and failover.automatic and state is StandbyState.READY:
            self._try(lambda: self._take_over(heard))

    def _try(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            finally:
                self._trying.clear()

        self._trying.set()
        try:
            spawn(run, name=f"silence-{self._replica.vm}")
        except NoThread as exc:  # the next look tries again
            self._trying.clear()
            log.error("%s: %s", self._replica.vm, exc)

    def _take_over(self, heard: float) -> None:
        """The primary has not been heard since `heard`."""
        replica = self._replica
        try:
            silence_ms = replica.context.config.failover.silence_ms
            self.promote(f"{replica.state.peer} was silent for {silence_ms} ms", heard)
        except RefusedForSafety as exc:
            replica.reason = f"{replica.state.peer} is silent, but this host does not take over: {exc}"
            if isinstance(exc, ArbiterAway):
                replica.troubles.say("arbiter", replica.reason)
            time.sleep(LOOK_AGAIN_S)
        except Exception as exc:  # task boundary: it is tried again
            log.exception("%s: takeover failed", replica.vm)
            replica.reason = f"takeover failed: {exc}"


def require_arbiter(context: Context, vm: str, owner: str, term: int) -> None:
    """Before anything is staked: RefusedForSafety when the arbiter does not answer, Overruled when it says no."""
    if context.arbiter is None:
        return
    try:
        record = context.arbiter.read(vm)
    except PeerUnreachable as exc:
        raise ArbiterAway(
            f"the arbiter does not answer, so nobody can know whether {owner} went on alone: {exc}",
            hint="bring etcd back; or, if you are sure that the VM does not run there, say --primary-is-dead",
        ) from exc
    # The second: our own claim of before, which we could not follow up.
    if record not in (Ownership(owner, term), Ownership(context.name, term + 1)):
        raise Overruled(f"by the arbiter {_owner(record)} owns {vm}, not {owner} in term {term}")


def win(context: Context, vm: str, owner: str, term: int, waiting: Callable[[str], None]) -> bool:
    """Claim the VM until the answer is definite. False: the arbiter never saw it. Overruled: somebody else has it.

    `waiting` is told, each time that there is no definite answer, what the matter seems to be.
    """
    claim = context.claim(vm, take_over(context.name, owner, term))
    while claim.verdict is Verdict.UNKNOWN:
        waiting(_problem(context))
        time.sleep(ASK_AGAIN_S)
        claim = context.claim(vm, take_over(context.name, owner, term))
        if claim.verdict is Verdict.UNREACHED:  # the first try may still have been seen
            claim = type(claim)(Verdict.UNKNOWN, None)
    if claim.verdict is Verdict.LOST:
        raise Overruled(f"by the arbiter {_owner(claim.record)} owns {vm}")
    return claim.verdict is Verdict.WON


def _problem(context: Context) -> str:
    """What the matter with the arbiter seems to be. The claim may be won already: nothing here may end the asking."""
    try:
        return context.arbiter_problem()
    except Exception as exc:  # task boundary
        log.exception("the arbiter's health cannot be told")
        return f"it does not answer, and its health cannot be told: {type(exc).__name__}: {exc}"


def run(machine: Machine, vm: str, applied: Callable[[], bool], stays: bool) -> str:
    """Make the replica the VM; how it came up. RemusError when it cannot be run here at all.

    `applied`: whether the replica is exactly the last committed epoch; a torn one must not run. `stays`: the VM stood
    still there by somebody's will, and does here.
    """
    still = STILL.format(vm=quote(vm)) if stays else ""
    while not machine.wait_applied(APPLY_S):
        log.warning("%s: epochs are still being applied", vm)
    if not applied():
        raise RemusError(f"{vm}: the last epoch could not be applied")
    try:
        machine.resume(stays)
        return WARM + still
    except RemusError as exc:
        log.error("%s: the standby cannot be resumed, its disks are booted: %s", vm, exc)
        machine.cold_start(stays)
        return f"{COLD}: {exc}{still}"


def runs(libvirt_uri: str, vm: str) -> bool:
    """Whether libvirt has the VM running, and not paused. Waits for a libvirt that is away."""
    calls = BlockingCalls(CALL_S)
    while True:
        try:
            return calls.call(f"VM {vm}", _is_running, connect(libvirt_uri, calls), vm)
        except VmError as exc:
            log.warning("%s: libvirt does not say whether it runs: %s", vm, exc)
            time.sleep(1.0)


def _is_running(connection: libvirt.virConnect, vm: str) -> bool:
    found = [domain for domain in connection.listAllDomains() if domain.name() == vm]
    return bool(found) and found[0].state()[0] == libvirt.VIR_DOMAIN_RUNNING


def hand_back(context: Context, vm: str, owner: str, term: int) -> None:
    """Tell the arbiter that `owner` may have the VM again, until it has heard."""
    rule: Rule = give_back(context.name, owner, term)
    while (verdict := context.claim(vm, rule).verdict) not in (Verdict.WON, Verdict.LOST):
        log.warning("%s: the arbiter does not hear yet that %s may have the VM again (%s)", vm, owner, verdict.value)
        time.sleep(1.0)


def _owner(record: Ownership | None) -> str:
    return f"{record.owner or 'nobody'} (term {record.term})" if record else "nobody"
