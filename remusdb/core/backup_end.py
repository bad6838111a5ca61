# SPDX-License-Identifier: Apache-2.0
"""How a replica ends, and what an operator or a new agent does about one that has.

    SEEDING, READY ─save "none"▶ ENDING, RENOUNCE is sent ─▶ the standby is taken away ─▶ EMPTY

Invariant: that this side can no longer take over is durable before the primary is told, and told before its connection
is closed. A replica that was promoted is the VM, and stays; while the arbiter decides, only its answer ends one.
"""

from __future__ import annotations

from contextlib import suppress
from shlex import quote

from remusdb.core.backup_effects import (
    CloseStandby,
    HandBack,
    Later,
    LetGo,
    LookIfRuns,
    LookIfThere,
    Outcome,
    ReleaseRoom,
    RequireSilence,
    Send,
    SetAside,
    Sweep,
    Tell,
)
from remusdb.core.backup_events import CopySilent, Forget, LookedIfThere, Lost, Recover, Stop
from remusdb.core.backup_state import Effects, Ended, State
from remusdb.core.roles import NOBODYS
from remusdb.core.standby import Phase
from remusdb.core.wire import FrameType
from remusdb.errors import RefusedForSafety, RemusError
from remusdb.reasons import Code, Reason
from remusdb.wording import words

FORGOTTEN = Reason.of(Code.FORGOTTEN)


def give_up(my: State, why: Reason, tell: int | None, *, forget: bool = False) -> Effects:
    """A session's standby ends, for whatever reason, unless it becomes the VM. `tell`: a connection, to say RENOUNCE.

    With `forget`, its images go too, and so does who owned it: who protects a VM of that name next may.
    """
    if my.standby.phase is Phase.DECIDING:
        my.torn = why  # the arbiter's answer may be yes already: the takeover ends it
    elif my.standby.phase in (Phase.SEEDING, Phase.READY):
        yield from end(my, why, tell, forget=forget)


def end(my: State, why: Reason, tell: int | None, *, forget: bool = False) -> Effects:
    """The same of one that no takeover needs."""
    my.ended = Ended(my.standby.phase.shown, why)
    my.standby.renounce()
    if my.line is not None:
        line, my.line = my.line, None
        yield LetGo(line, close=False)
    with suppress(RemusError):  # a restarted agent has no replica anyway
        yield from my.save("none", why, **(NOBODYS if forget else {}))
    if forget:
        my.standby.owner = my.durable.owner
    if tell is not None:
        yield Send(tell, FrameType.RENOUNCE, my.standby.term, reason=words(why))
    yield CloseStandby(my.session_term, keep_images=not forget)


def gone(my: State) -> Effects:
    """What was here is taken away."""
    if my.forgetting is None:
        my.standby.gone()
    yield ReleaseRoom()
    ended, my.ended = my.ended, None
    if ended is not None and ended.was != Phase.EMPTY.shown:
        yield Tell("renounced", ended.was, ended.why)
    if my.forgetting is not None:
        yield LookIfThere()


def lost(my: State, event: Lost) -> Effects:
    """The replica stays and waits for the primary, an incomplete one for a while."""
    if event.line != my.line:
        return
    my.line = None
    my.why = Reason.of(Code.SESSION_LOST, peer=my.durable.peer, why=event.reason)
    yield LetGo(event.line, close=False)
    if event.hopeless:
        yield from give_up(my, Reason.of(Code.SESSION_BROKE, why=event.reason), event.line)


def copy_silent(my: State, event: CopySilent) -> Effects:
    """A whole replica waits for its primary, a copy does not."""
    if my.standby.phase is Phase.SEEDING and event.term == my.session_term:
        try:
            yield RequireSilence(my.durable.peer, event.heard)
        except RefusedForSafety:
            return
        why = Reason.of(Code.PRIMARY_SILENT_IN_COPY, peer=my.durable.peer, silence_ms=event.patience_ms)
        yield from give_up(my, why, my.line)


def stop(my: State, event: Stop) -> Effects:
    """A standby goes, a promoted VM stays; a takeover under way is waited for by who stops the daemon."""
    if my.standby.phase is Phase.STARTING:
        yield Later(event)
    elif my.standby.phase in (Phase.SEEDING, Phase.READY):
        yield from give_up(my, Reason.of(Code.AGENT_STOPPED), my.line)


def recover(my: State, event: Recover) -> Effects:
    """An earlier agent's replica is gone with it; its takeover is finished or given back."""
    durable = my.durable
    if durable.role == "standby":
        yield from my.save("none", Reason.of(Code.AGENT_RESTARTED))
        my.standby.phase = Phase.ENDING
        yield Sweep()
    if durable.peer and my.standby.phase is Phase.UNSETTLED:
        yield LookIfRuns()
    elif durable.peer and my.durable.role == "none" and event.arbiter and durable.owner == durable.peer:
        # A claim of that agent may have been won after its end.
        yield HandBack(durable.peer, durable.term + 1)


def forget(my: State, event: Forget) -> Effects:
    """Let any listed host protect a VM of this name, with any UUID, to here; nobody comes in meanwhile."""
    if my.standby.phase.moving:
        yield Later(event)
        return
    try:
        _require_free(my, event)
    except RefusedForSafety as exc:
        yield Outcome(event.number, exc)
        return
    my.forgetting = event
    if my.standby.phase.holds:
        yield from end(my, FORGOTTEN, None)
        return
    my.standby.phase = Phase.ENDING
    yield LookIfThere()


def looked_if_there(my: State, event: LookedIfThere) -> Effects:
    """What libvirt has of that name may be the VM itself."""
    asked, my.forgetting = my.forgetting, None
    assert asked is not None
    try:
        if event.error is not None:
            raise event.error
        if event.there:
            name = quote(my.vm)
            raise RefusedForSafety(
                f"libvirt has a domain {my.vm} on {my.host}: it may be the VM itself",
                hint=f"see what it is: virsh dominfo {name}; if it is not needed: virsh destroy, virsh undefine",
            )
        yield SetAside(my.durable.term)
        yield from my.save("none", FORGOTTEN, quarantined=False, **NOBODYS)
    except Exception as exc:  # whatever it was, the operator hears of it
        my.read(my.durable)
        yield Outcome(asked.number, exc)
        return
    my.read(my.durable)
    yield Tell("renounced", Phase.EMPTY.shown, FORGOTTEN, by="operator")
    yield Outcome(asked.number)


def _require_free(my: State, event: Forget) -> None:
    durable, vm, here = my.durable, my.vm, my.host
    if my.line is not None:
        raise RefusedForSafety(
            f"host {durable.peer} protects VM {vm} to here now",
            hint=f"on {durable.peer}: remusdb unprotect {quote(vm)}",
        )
    if event.tried or my.taking is not None or my.asker is not None or durable.role == "promoting":
        raise RefusedForSafety(f"{here} is taking VM {vm} over", hint=f"see: remusdb status {quote(vm)}")
    if (problem := _held(my)) is not None:
        raise RefusedForSafety(
            f"VM {vm}: {problem}", hint=f"see: remusdb status {quote(vm)}; then: remusdb unprotect {quote(vm)}"
        )
    if my.standby.phase is Phase.READY and not event.lose_replica:
        raise RefusedForSafety(
            f"{here} holds a complete replica of VM {vm}, and host {durable.peer} is silent: it may be the only copy",
            hint=f"to run it here: remusdb failover {quote(vm)}; if it is not needed: --lose-the-replica",
        )


def _held(my: State) -> str | None:
    """Why its role here forbids it. A promoted VM is libvirt's to tell: it may have been moved away since."""
    if my.durable.role in ("seeding", "protected", "solo"):
        return "this host protects it, or did and has not ended that"
    if my.durable.role == "fenced" and not my.durable.quarantined:
        return f"host {my.durable.owner} owns it, and what this host ran is not quarantined yet"
    return None
