# SPDX-License-Identifier: Apache-2.0
"""What a HELLO is answered, and how a session begins.

    HELLO ─▶ who says it, of which VM ─▶ the arbiter is asked ─▶ who owns it (core/succession.py) ─▶ room for it
      │ to resume: at once                                          │ superseded here: quarantined first
      ▼                                                             ▼
    its session goes on          what was here goes ─▶ the term is saved ─▶ a standby is started ─▶ WELCOME

Invariant: what a HELLO could not have costs nothing that is here; a new session's term is durable before it is used;
one that comes to nothing makes nobody the owner. While a takeover is under way nobody is fenced for it, as it
may yet fail.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import msgspec

from remusdb.core.backup_effects import (
    Admit,
    CloseStandby,
    HandBack,
    Later,
    Learn,
    LetGo,
    LookUp,
    Refused,
    ReleaseRoom,
    RequireRoom,
    StartStandby,
    Tell,
    YieldVm,
)
from remusdb.core.backup_end import end
from remusdb.core.backup_events import Durable, Hailed, LookedUp, NotStarted, Quarantined
from remusdb.core.backup_refusals import at_the_door, known, looked_up_in_vain, preflight, stranger
from remusdb.core.backup_state import Beginning, Effects, State
from remusdb.core.messages import Refuse
from remusdb.core.ownership import Ownership
from remusdb.core.roles import OWNING, Role
from remusdb.core.standby import Offer, Phase, Refusal
from remusdb.core.succession import Succession, begins, resumes
from remusdb.errors import RemusError
from remusdb.reasons import Code, Reason


def hailed(my: State, event: Hailed) -> Effects:
    """HELLO came."""
    refuse = at_the_door(my, event)
    if refuse is not None:
        yield Refused(event.line, refuse)
    elif event.hello.resume:  # the session was agreed on already, and the arbiter may be away
        yield from _judge(my, event, None, resumes(known(my), event.hello.primary))
    else:
        yield LookUp(event)


def looked_up(my: State, event: LookedUp) -> Effects:
    """Of a new session is known what there is to know."""
    asked, hello = event.hailed, event.hailed.hello
    refuse = at_the_door(my, asked) or looked_up_in_vain(my, event)
    if refuse is None and event.record is not None and _is_void(my, event.record):
        yield HandBack(my.durable.owner, event.record.term)
        why = "a claim of this host that came to nothing is given back"
        refuse = Refuse(why, term=my.standby.term, code="deciding")
    if refuse is not None:
        yield Refused(asked.line, refuse)
        return
    yield from _judge(my, asked, event.record, begins(known(my), hello.primary, hello.term, event.record))


def _is_void(my: State, record: Ownership) -> bool:
    """Whether the arbiter has a claim of this host that nobody can follow up: its agent died while it asked, and the
    question was heard after that. It would keep the owner from beginning a session for good."""
    mine = record.owner == my.host and my.durable.owner not in ("", my.host)
    return mine and my.standby.phase is Phase.EMPTY and my.durable.role not in OWNING


def quarantined(my: State, event: Quarantined) -> Effects:
    """What this host had of the VM is out of the new owner's way, or not."""
    refuse = at_the_door(my, event.hailed)
    if event.problem:
        reason = f"the VM that this host ran before is not quarantined: {event.problem}"
        refuse = Refuse(reason, event.hint, term=my.durable.term)
    if refuse is not None:
        yield Refused(event.hailed.line, refuse)
    else:
        yield from _agree(my, event.hailed)


def started(my: State) -> Effects:
    """The new session's standby is there."""
    beginning = my.beginning
    assert beginning is not None
    my.line = beginning.line
    yield Admit(beginning.line, beginning.term, 0, resumed=False)
    my.beginning = None
    my.standby.up()  # from here on its silence counts


def begin(my: State) -> Effects:
    """Of what was here before nothing is left: the term first, then a fresh standby."""
    beginning = my.beginning
    assert beginning is not None
    hello, term = beginning.hello, beginning.term
    owned = {"owner": hello.primary, "peer": hello.primary, "uuid": hello.uuid}
    try:
        yield from my.save("standby", Reason.of(Code.COPY_ARRIVES), term=term, **owned)
    except RemusError as exc:
        yield from came_to_nothing(my, NotStarted(beginning.line, str(exc), preflight(exc)))
        return
    my.standby.begin(hello.primary, term)
    my.session_term = term
    my.owed.told(0)
    yield Tell("protect", Phase.EMPTY.shown, Reason.of(Code.PROTECTED_TO_HERE, peer=hello.primary))
    yield StartStandby(beginning.line, term, hello)


def came_to_nothing(my: State, event: NotStarted) -> Effects:
    """A HELLO failed; what had been begun for it is given up."""
    beginning = my.beginning
    if beginning is not None and beginning.line == event.line:
        my.beginning = None
        was, before = my.standby.phase.shown, beginning.before
        why = Reason.of(Code.NOT_STARTED, why=event.reason)
        my.standby.renounce()
        my.standby.gone()
        with suppress(RemusError):  # a restarted agent has no replica anyway
            role, left = _left(why, before)
            yield from my.save(role, left, owner=before.owner, peer=before.peer, uuid=before.uuid)
        my.standby.owner = my.durable.owner
        yield ReleaseRoom()
        if was != Phase.EMPTY.shown:
            yield Tell("renounced", was, why)
    yield Refused(event.line, msgspec.structs.replace(event.refuse, term=my.standby.term))


def _judge(my: State, event: Hailed, record: Ownership | None, found: Succession) -> Effects:
    term, durable = my.standby.term, my.durable
    if found is Succession.STRANGER:  # whoever it is, the owner's HELLO does not wait for it, nor it for that one
        yield Refused(event.line, stranger(my, event.hello, record))
    elif my.standby.phase.moving:
        yield Later(event)
    elif found is Succession.RUNS_HERE:
        yield Refused(event.line, Refuse("this host runs the VM: it took over", term=term, fenced=True))
    elif found is Succession.UNDECIDED:
        yield Refused(event.line, Refuse("this host was taking the VM over", term=term, code="deciding"))
    elif not event.hello.resume and (
        found is Succession.QUARANTINE or (durable.role == "fenced" and not durable.quarantined)
    ):
        yield YieldVm(event)
    else:
        yield from _agree(my, event)


def _agree(my: State, event: Hailed) -> Effects:
    """Its sender may; what the protocol says to it. A new session is looked at before anything is given up for it."""
    hello, phase = event.hello, my.standby.phase
    if phase.moving:
        yield Later(event)
        return
    try:
        if not hello.resume:
            yield RequireRoom(hello)
        answer = my.standby.hello(hello.primary, hello.term, hello.resume)
        if isinstance(answer, Refusal):
            yield from _refuse(my, event, answer, phase)
            return
    except RemusError as exc:
        yield Refused(event.line, msgspec.structs.replace(preflight(exc), term=my.standby.term))
        return
    if answer.resumed:
        yield from _resume(my, event.line, answer)
        return
    my.beginning = Beginning(event.line, hello, answer.term, my.durable)
    if my.line is not None:
        line, my.line = my.line, None
        yield LetGo(line, close=True)
    if my.standby.phase.holds:
        my.standby.renounce()
        yield CloseStandby(my.session_term)  # and once it is gone: `begin`
    else:
        yield from begin(my)


def _resume(my: State, line: int, offer: Offer) -> Effects:
    old, my.line = my.line, line
    my.owed.told(offer.committed)
    if old is not None:
        yield LetGo(old, close=True)
    yield Admit(line, offer.term, offer.committed, resumed=True)


def _refuse(my: State, event: Hailed, answer: Refusal, before: Phase) -> Effects:
    """Say no; a replica that was renounced with it goes."""
    if before.holds and my.standby.phase is Phase.ENDING:
        yield from end(my, Reason.of(Code.SESSION_BROKE, why=answer.reason), None)
    if answer.learned:
        yield Learn(answer.learned)
        my.durable = replace(my.durable, term=answer.learned)
    code = "deciding" if before is Phase.DECIDING else "behind" if answer.learned else "failed"
    told = Refuse(answer.reason, term=answer.term, fenced=answer.fenced, renounced=answer.renounced, code=code)
    yield Refused(event.line, told)


def _left(why: Reason, before: Durable) -> tuple[Role, Reason]:
    """Role and reason once a session came to nothing: a VM that was superseded here stays so."""
    return ("fenced", before.why or why) if before.role == "fenced" else ("none", why)
