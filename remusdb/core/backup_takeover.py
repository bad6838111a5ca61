# SPDX-License-Identifier: Apache-2.0
"""The steps of a takeover: who may, then the VM.

    ask the arbiter (nothing is acknowledged from here on) ─▶ term on disk ─▶ last epoch applied ─▶ resume ─▶ announce
                   │ no: the primary went on alone                              │ standby dead: boot from its disks
                   ▼                                                            ▼ that fails too: give the VM back
              renounce                                                     nobody runs it here

Invariant: while it is under way no other host is told that this one has the VM; only one that runs it says so.
Promotion resumes exactly the last committed epoch, or does not happen.
"""

from __future__ import annotations

from contextlib import suppress

from remusdb.core.backup_effects import (
    Announce,
    Claim,
    CloseStandby,
    ColdStart,
    Drain,
    HandBack,
    LetGo,
    Outcome,
    ReadArbiter,
    ReleaseRoom,
    RequireSilence,
    Resume,
    Send,
    TakenOver,
    Tell,
    Trouble,
)
from remusdb.core.backup_end import end
from remusdb.core.backup_events import (
    Announced,
    ArbiterRead,
    ArbiterWaits,
    Claimed,
    Found,
    NotResumed,
    Runs,
    TakeOver,
    TakeoverFailed,
)
from remusdb.core.backup_state import Effects, State, Taking
from remusdb.core.backup_switchover import decline
from remusdb.core.ownership import Ownership, Verdict
from remusdb.core.standby import Phase
from remusdb.core.terms import following
from remusdb.core.wire import FrameType
from remusdb.errors import RefusedForSafety, RemusError
from remusdb.reasons import Code, Reason
from remusdb.wording import words

ANSWERED = Reason.of(Code.ARBITER_ANSWERED)


class ArbiterAway(RefusedForSafety):
    """Nobody can know now whether this host may take over."""


class Overruled(RefusedForSafety):
    """The arbiter gave the VM to somebody else: this replica is worth nothing any more."""


def take_over(my: State, asked: TakeOver) -> Effects:
    """Somebody asks for it. The arbiter is looked at before anything is at stake."""
    owner, term = my.standby.owner, my.standby.term
    if my.standby.phase is Phase.READY and asked.arbiter and not asked.word:
        yield ReadArbiter(asked, owner, term)
    else:
        yield from _decide(my, asked, owner, term)


def arbiter_read(my: State, event: ArbiterRead) -> Effects:
    """What it has; a replica that it overruled is given up."""
    asked, owner, term = event.asked, event.owner, event.term
    if event.away:
        error = ArbiterAway(
            f"the arbiter does not answer, so it is not known whether {owner} went on alone: {event.away}",
            hint="bring etcd back; or, if you are sure that the VM does not run there, use --primary-is-dead",
        )
        yield from _refuse(my, asked, error)
    # The second: our own claim of before, which we could not follow up.
    elif event.record in (Ownership(owner, term), Ownership(my.host, term + 1)):
        yield from _decide(my, asked, owner, term)
    else:
        why = Reason.of(Code.OVERRULED, by=_named(event.record), peer=owner, term=term)
        yield Trouble(ANSWERED, over=True)
        if my.standby.phase is Phase.READY and (my.standby.owner, my.standby.term) == (owner, term):
            yield from end(my, why, my.line)
        yield from _refuse(my, asked, Overruled(words(why)))


def arbiter_waits(my: State, event: ArbiterWaits) -> Effects:
    """It was asked, and does not say: nothing can be done but ask again."""
    if my.standby.phase is Phase.DECIDING:
        my.why = Reason.of(Code.ARBITER_AWAITED, peer=my.standby.owner, why=event.problem)
        yield Trouble(my.why)


def claimed(my: State, event: Claimed) -> Effects:
    """Whether this host may."""
    taking = my.taking
    if taking is None or my.standby.phase is not Phase.DECIDING:
        return
    yield Trouble(ANSWERED, over=True)
    if event.verdict is Verdict.WON:
        yield from _become(my, taking)
    elif event.verdict is Verdict.LOST:
        why = Reason.of(Code.OVERRULED, by=_named(event.record))
        my.taking = my.torn = None
        yield from end(my, why, my.line)
        yield from _refuse(my, taking.asked, Overruled(words(why)))
    else:
        yield from _stay(my, taking, ArbiterAway("the arbiter does not answer any more"))


def drained(my: State) -> Effects:
    """All that was committed is applied, or applying failed: a torn replica must not run."""
    if my.standby.applied == my.standby.committed:
        with suppress(RemusError):  # it says more than is known without it, and no takeover is given up for that
            yield from my.save("promoting", my.why, resuming=True)
        yield Resume(my.stays)
    else:
        yield from failed(my, TakeoverFailed(RemusError(f"{my.vm}: the last epoch could not be applied")))


def not_resumed(my: State, event: NotResumed) -> Effects:
    """Its disks are as the database committed to them: as after a power cut."""
    yield ColdStart(my.stays, str(event.error))


def runs(my: State, event: Runs) -> Effects:
    """It is the VM now."""
    still = {"still": True} if my.stays else {}
    if event.cold is None:
        resets = {"resets": event.resets} if event.resets else {}
        how = Reason.of(Code.RESUMED_WARM, **still, **resets)
    else:
        how = Reason.of(Code.RESUMED_COLD, error=event.cold, **still)
    yield Announce(my.addresses, event.at_ns, how)


def announced(my: State, event: Announced) -> Effects:
    """Durable, and told."""
    taking, my.taking = my.taking, None
    assert taking is not None
    asked, epoch = taking.asked, my.standby.committed
    my.standby.runs()
    if asked.cause == "switchover":
        my.asker = None
    why = Reason.of(event.how.code, why=asked.why, **event.how.params)
    with suppress(RemusError):  # "promoting" on the disk means the same
        yield from my.save("promoted", why, resumed_at_ns=event.at_ns, autostart=False, resuming=False)
    yield ReleaseRoom()
    yield Tell("promoted", "promoting", why, asked.by, epoch)
    measured = TakenOver(taking.term, epoch, (event.at_ns - asked.at_ns) / 1e6, event.how)
    yield Outcome(asked.number, taken=measured)


def failed(my: State, event: TakeoverFailed) -> Effects:
    """A step of it failed."""
    taking = my.taking
    if event.asked is not None:
        yield from _refuse(my, event.asked, event.error)
    elif taking is not None and my.standby.phase is Phase.PROMOTING:
        yield from _cannot_run(my, taking, event.error)
    elif taking is not None:
        yield from _stay(my, taking, event.error)


def found(my: State, event: Found) -> Effects:
    """A takeover in whose middle an earlier agent died is finished, or given back."""
    if my.standby.phase is not Phase.UNSETTLED:
        return
    durable = my.durable
    if event.runs:
        yield from my.save("promoted", my.why, resumed_at_ns=event.at_ns, resuming=False)
        my.standby.runs()
    elif durable.resuming:  # it may have run, and answered its clients: nobody else may have it
        yield from my.save("promoted", Reason.of(Code.MAY_HAVE_RUN, since=my.why), resuming=False)
        my.standby.runs()
    else:  # epochs that were only in that agent's memory are lost: the replica must not run
        error = RemusError("the agent died in the middle of it")
        yield from _give_back(my, durable.peer, durable.term, error)


def _decide(my: State, asked: TakeOver, owner: str, term: int) -> Effects:
    """The last moment in which nothing is staked."""
    standby = my.standby
    try:
        newer = following(term)
        if asked.heard is not None:
            yield RequireSilence(owner, asked.heard)
        if not standby.phase.holds or (standby.owner, standby.term) != (owner, term):
            raise RefusedForSafety(f"{my.vm} cannot be resumed here: {standby.promotable() or 'changed'}")
        standby.decide()
    except RemusError as exc:
        yield from _refuse(my, asked, exc)
        return
    my.taking = Taking(asked, owner, newer)
    if asked.arbiter and not asked.word:
        yield Claim(owner, term)
    else:
        yield from _become(my, my.taking)


def _become(my: State, taking: Taking) -> Effects:
    """This host has the VM: make it run."""
    if my.torn:
        yield from _cannot_run(my, taking, RemusError(f"the replica broke: {words(my.torn)}"))
        return
    asked = taking.asked
    try:
        times = {"decided_at_ns": asked.at_ns, "resumed_at_ns": None}
        yield from my.save("promoting", asked.why, term=taking.term, owner=my.host, **times)
    except RemusError as exc:  # it is tried again
        yield from _stay(my, taking, exc)
        return
    epoch = my.standby.promote(taking.term)
    my.standby.owner = my.host
    if my.line is not None:
        line, my.line = my.line, None
        yield LetGo(line, close=True)
    yield Tell("takeover", "ready", asked.why, asked.by, epoch, asked.silent_ms)
    yield Drain()


def _stay(my: State, taking: Taking, error: Exception) -> Effects:
    """Nothing is changed: follow on, if the replica is still worth it."""
    my.taking = None
    my.standby.stay()
    torn, my.torn = my.torn, None
    if torn:
        yield from end(my, torn, my.line)
    yield from _refuse(my, taking.asked, error)


def _cannot_run(my: State, taking: Taking, error: Exception) -> Effects:
    """Neither resumed nor booted."""
    my.taking = my.torn = None
    yield from _give_back(my, taking.owner, taking.term, error)
    yield from _refuse(my, taking.asked, error)


def _give_back(my: State, owner: str, term: int, error: Exception) -> Effects:
    """The old owner may have the VM again, if it is still there."""
    my.standby.give_back(owner)
    my.standby.term = max(my.standby.term, term)
    line, my.line = my.line, None
    if line is not None:
        yield LetGo(line, close=False)
    with suppress(RemusError):  # "promoting" on the disk: the next agent gives it back
        yield from my.save("none", Reason.by(error, Code.TAKEOVER_FAILED), owner=owner, term=term, resuming=False)
    yield Tell("failed", "promoting", my.why)
    if line is not None:  # it was torn before it was promoted, and its primary is there
        yield Send(line, FrameType.RENOUNCE, my.standby.term, reason=words(my.why))
    yield CloseStandby(my.session_term)
    yield HandBack(owner, term)


def _refuse(my: State, asked: TakeOver, error: Exception) -> Effects:
    """It is not done, and who asked is told."""
    if asked.cause == "silence" and isinstance(error, RefusedForSafety):
        my.why = Reason.of(Code.TAKEOVER_REFUSED, peer=my.durable.peer, why=error, hint=error.hint)
        if isinstance(error, ArbiterAway):
            yield Trouble(my.why)
    elif asked.cause == "silence":
        my.why = Reason.by(error, Code.TAKEOVER_TRIED)
    elif asked.cause == "switchover":
        yield from decline(my, str(error))
    yield Outcome(asked.number, error)


def _named(record: Ownership | None) -> str:
    return f"{record.owner or 'nobody'} (term {record.term})" if record else "nobody"
