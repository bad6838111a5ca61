# SPDX-License-Identifier: Apache-2.0
"""In which order a backup does what it decides: durable before used or told, nothing acknowledged after a decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from remusdb.core import backup_effects as do
from remusdb.core import backup_events as event
from remusdb.core.backup import Backup
from remusdb.core.backup_takeover import ArbiterAway, Overruled
from remusdb.core.drive import drive
from remusdb.core.messages import Hello, Refuse
from remusdb.core.owed import WINDOW_MAX, Unbridled
from remusdb.core.ownership import Ownership, Verdict
from remusdb.core.standby import Phase
from remusdb.core.terms import HELLO_JUMP_MAX, TERM_MAX
from remusdb.core.wire import FrameType
from remusdb.errors import BadFrame, CannotProtect, NoThread, RefusedForSafety, RemusError, VmError
from remusdb.names import VmName
from remusdb.reasons import Code, Reason

UUID = "5a6c9f9e-4a7e-4a39-8a52-0d2b7f2d0c11"
LINE = 1  # over which the session's HELLO came
WARM = Reason.of(Code.RESUMED_WARM)
ASKED = event.TakeOver(5, "order", Reason.of(Code.FAILOVER_ASKED), at_ns=1_000_000)
WITH_ARBITER = replace(ASKED, arbiter=True)
SILENCE = replace(WITH_ARBITER, cause="silence", heard=3.0)
MINE = Ownership("a", 1)


def hello(term: int = 0, primary: str = "a", *, resume: bool = False, uuid: str = UUID) -> Hello:
    return Hello("0", primary, VmName("vm"), uuid, term, resume, 0, "q35", "<domain/>", [], [], 100, "10")


def hailed(line: int, said: Hello) -> event.Hailed:
    return event.Hailed(line, said.primary, said)


class Run:
    """A backup, and all that it did."""

    def __init__(self, **durable: Any) -> None:
        self.backup = Backup("vm", "b", event.Durable(**durable))
        self.done: list[Any] = []
        self.fails: dict[type, Exception] = {}  # what each effect of this kind raises

    def tell(self, *events: event.Event) -> list[Any]:
        """What is done about them."""
        before = len(self.done)
        for one in events:
            drive(self.backup.handle(one), self._perform)
        return self.done[before:]

    def _perform(self, effect: do.Effect) -> None:
        self.done.append(effect)
        if type(effect) in self.fails:
            raise self.fails[type(effect)]

    @property
    def phase(self) -> Phase:
        return self.backup.phase

    def stands(self, phase: Phase) -> bool:
        """Whether it stands there now."""
        return self.phase is phase

    @property
    def now(self) -> Any:
        return self.backup.now


def kinds(effects: list[Any]) -> list[type]:
    return [type(effect) for effect in effects]


def only(effects: list[Any], kind: type) -> Any:
    """The one effect of that kind."""
    (found,) = [effect for effect in effects if isinstance(effect, kind)]
    return found


def renounced(effects: list[Any]) -> None:
    """Durable, then told, then taken away."""
    save, told, close = only(effects, do.Save), only(effects, do.Send), only(effects, do.CloseStandby)
    assert save.role == "none" and told.type is FrameType.RENOUNCE
    assert effects.index(save) < effects.index(told) < effects.index(close)


def refusal(effects: list[Any]) -> Refuse:
    return only(effects, do.Refused).refuse  # type: ignore[no-any-return]


def seeding(**durable: Any) -> Run:
    run = Run(**durable)
    run.tell(event.LookedUp(hailed(LINE, hello())), event.Started(LINE))
    assert run.stands(Phase.SEEDING)
    return run


def ready(epochs: int = 1, applied: int | None = None, **commit: Any) -> Run:
    """A replica that holds so many epochs of the session of term 1."""
    run = seeding()
    for epoch in range(1, epochs + 1):
        run.tell(event.Committed(LINE, 1, epoch, **commit))
    for epoch in range(1, (epochs if applied is None else applied) + 1):
        run.tell(event.Applied(1, epoch))
    assert run.stands(Phase.READY)
    return run


def deciding(asked: event.TakeOver = WITH_ARBITER) -> Run:
    run = ready(2)
    assert kinds(run.tell(asked)) == [do.ReadArbiter]
    assert run.tell(event.ArbiterRead(asked, "a", 1, MINE))[-1] == do.Claim("a", 1)
    assert run.stands(Phase.DECIDING)
    return run


def promoting(asked: event.TakeOver = ASKED) -> Run:
    run = ready(2)
    run.tell(asked)
    assert run.stands(Phase.PROMOTING)
    return run


def promoted() -> Run:
    run = promoting()
    run.tell(event.Drained(), event.Runs(3_000_000), event.Announced(3_000_000, WARM))
    assert run.stands(Phase.PROMOTED)
    return run


# --- a session begins ---


def test_a_new_session_is_looked_into_then_durable_then_started_then_welcomed() -> None:
    run = Run()
    said = hailed(LINE, hello(4))
    assert run.tell(said) == [do.LookUp(said)]
    done = run.tell(event.LookedUp(said))
    assert kinds(done) == [do.RequireRoom, do.Save, do.Tell, do.StartStandby]
    assert (done[1].role, done[1].changes) == ("standby", {"term": 5, "owner": "a", "peer": "a", "uuid": UUID})
    assert run.stands(Phase.STARTING) and not run.backup.follows(LINE, 5)
    steps = run.backup.handle(event.Started(LINE))
    assert next(steps) == do.Admit(LINE, 5, 0, resumed=False) and run.stands(Phase.STARTING), "nobody is silent yet"
    assert list(steps) == [] and run.stands(Phase.SEEDING)
    assert run.backup.follows(LINE, 5) and not run.backup.follows(LINE, 4) and not run.backup.follows(2, 5)


def test_a_term_that_cannot_be_saved_is_not_used() -> None:
    run = Run()
    run.fails = {do.Save: RemusError("no space")}
    done = run.tell(event.LookedUp(hailed(LINE, hello())))
    assert do.StartStandby not in kinds(done) and refusal(done).reason == "no space"
    assert run.stands(Phase.EMPTY) and run.now.standby.term == 0 and run.now.standby.owner == ""


def test_what_was_here_is_gone_before_the_next_session_is_durable() -> None:
    run = ready()
    done = run.tell(event.LookedUp(hailed(2, hello(1))))
    assert kinds(done) == [do.RequireRoom, do.LetGo, do.CloseStandby]
    assert done[1].close and done[2].keep_images and run.stands(Phase.ENDING)
    assert run.now.standby.promotable() == "there is no replica here"
    done = run.tell(event.Gone())
    assert kinds(done) == [do.ReleaseRoom, do.Save, do.Tell, do.StartStandby]
    assert done[1].changes["term"] == 2
    run.tell(event.Started(2))
    assert run.tell(event.Committed(LINE, 1, 2), event.Applied(1, 1), event.Broken(1, "old")) == []


def test_a_vm_without_room_costs_nothing() -> None:
    run = ready()
    run.fails = {do.RequireRoom: CannotProtect("no room", hint="buy some")}
    answer = refusal(run.tell(event.LookedUp(hailed(2, hello(1)))))
    assert (answer.reason, answer.hint, answer.code) == ("no room", "buy some", "preflight")
    assert run.stands(Phase.READY) and run.backup.follows(LINE, 1)


@pytest.mark.parametrize("role", ["none", "fenced"])
def test_a_session_that_comes_to_nothing_makes_nobody_the_owner(role: Any) -> None:
    run = Run(
        role=role,
        term=7,
        owner="",
        peer="c",
        why=Reason.of(Code.QUARANTINED, owner="c", term=7, note="kept"),
        quarantined=True,
    )
    run.tell(event.LookedUp(hailed(LINE, hello(7))))
    assert run.now.standby.owner == "a"
    done = run.tell(event.NotStarted(LINE, "broke", Refuse("internal")))
    save = only(done, do.Save)
    assert save.role == role and save.changes == {"owner": "", "peer": "c", "uuid": ""}
    assert save.why.code is (Code.QUARANTINED if role == "fenced" else Code.NOT_STARTED)
    assert done.index(save) < done.index(only(done, do.Refused)) and refusal(done).term == 8
    assert run.stands(Phase.EMPTY) and run.now.standby.owner == "" and not run.backup.busy


def test_a_hello_that_failed_before_anything_began_ends_nothing() -> None:
    run = ready()
    assert kinds(run.tell(event.NotStarted(2, "broke", Refuse("internal")))) == [do.Refused]
    assert run.stands(Phase.READY)


# --- who says HELLO ---


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("make", [seeding, ready, deciding, promoting, Run])
def test_a_strangers_hello_costs_nothing(make: Callable[[], Run], resume: bool) -> None:
    run = make()
    run.tell(event.Lost(LINE, "reset"))
    if run.stands(Phase.EMPTY):
        run = Run(term=1, owner="a", peer="a")
    before = (run.phase, run.now.standby.term, run.now.standby.owner, run.now.durable)
    said = hailed(2, hello(99, "c", resume=resume))
    done = run.tell(said) if resume else run.tell(event.LookedUp(said))
    answer = refusal(done)
    assert kinds(done) == [do.Refused] and not answer.fenced and not answer.renounced
    assert before == (run.phase, run.now.standby.term, run.now.standby.owner, run.now.durable)


@pytest.mark.parametrize("resume", [True, False])
def test_while_a_session_begins_or_ends_its_owner_waits_and_a_stranger_does_not(resume: bool) -> None:
    starting, ending = Run(), ready()
    starting.tell(event.LookedUp(hailed(LINE, hello())))
    ending.tell(event.Broken(1, "torn"))
    for run, phase in ((starting, Phase.STARTING), (ending, Phase.ENDING)):
        assert run.phase is phase
        for primary, kind in (("a", do.Later), ("c", do.Refused)):
            said = hailed(2, hello(1, primary, resume=resume))
            done = run.tell(said) if resume else run.tell(event.LookedUp(said))
            assert kinds(done) == [kind]
            assert kind is do.Refused or done[0].event == said, "it is looked into again"
    ending.tell(event.Gone())
    assert refusal(ending.tell(hailed(2, hello(1, resume=True)))).renounced


@pytest.mark.parametrize("make", [deciding, promoting])
def test_nobody_hears_a_word_while_a_takeover_may_still_fail(make: Callable[[], Run]) -> None:
    run = make()
    before = run.phase
    for said in (hailed(2, hello(1)), hailed(2, hello(1, resume=True)), hailed(2, hello(9))):
        for one in (said, event.LookedUp(said), event.Quarantined(said)):  # whatever it waited for meanwhile
            done = run.tell(one)
            answer = refusal(done)
            assert kinds(done) == [do.Refused] and answer.code == "deciding"
            assert not answer.fenced and not answer.renounced
    assert run.phase is before and run.backup.standing().owner == ""


def test_only_a_host_that_runs_the_vm_fences() -> None:
    run = promoted()
    for resume in (True, False):
        said = hailed(2, hello(1, resume=resume))
        answer = refusal(run.tell(said if resume else event.LookedUp(said)))
        assert answer.fenced and answer.term == 2
    assert run.backup.standing().owner == "b"
    left = Run(role="promoting", term=2, owner="b", peer="a")
    assert left.stands(Phase.UNSETTLED) and left.backup.standing().owner == ""
    answer = refusal(left.tell(hailed(2, hello(1, resume=True))))
    assert answer.code == "deciding" and not answer.fenced


def test_what_ran_here_is_quarantined_before_its_new_owner_is_served() -> None:
    run = Run(role="protected", term=7, owner="b", peer="c", armed=True)
    said = hailed(LINE, hello(8, "c"))
    assert run.tell(event.LookedUp(said)) == [do.YieldVm(said)]
    answer = refusal(run.tell(event.Quarantined(said, "no daemon", "start it")))
    assert "not quarantined: no daemon" in answer.reason and answer.hint == "start it"
    run.tell(event.Read(event.Durable("fenced", 8, "c", "c", quarantined=True)))
    assert do.StartStandby in kinds(run.tell(event.Quarantined(said)))


def test_what_does_not_fit_is_refused_at_the_door() -> None:
    run = ready()
    other = UUID.replace("5a", "66")
    said = hello(1)
    for one in (
        event.Hailed(2, "mars", said),
        hailed(2, hello(1, "c")),
        hailed(2, hello(1, uuid=other)),
        event.LookedUp(hailed(2, said), others=("old",)),
        event.LookedUp(hailed(2, said), away="timeout"),
        event.LookedUp(hailed(2, said), arbiter="another"),
        event.LookedUp(hailed(2, said), record=Ownership("c", 9)),
    ):
        done = run.tell(one)
        answer = refusal(done)
        assert kinds(done) == [do.Refused] and answer.hint and not answer.fenced and not answer.renounced
    assert run.stands(Phase.READY) and run.backup.follows(LINE, 1)


def test_a_primary_that_is_far_ahead_teaches_a_term_that_is_saved_first() -> None:
    run = ready()
    done = run.tell(event.LookedUp(hailed(2, hello(TERM_MAX))))
    assert kinds(done) == [do.RequireRoom, do.LetGo, do.Save, do.CloseStandby, do.Learn, do.Refused]
    assert done[4].term == 1 + HELLO_JUMP_MAX and refusal(done).code == "behind"
    run.tell(event.Gone())
    run.fails = {do.Learn: RemusError("no space")}
    answer = refusal(run.tell(event.LookedUp(hailed(2, hello(TERM_MAX)))))
    assert answer.reason == "no space" and run.now.durable.term == 1 + HELLO_JUMP_MAX


# --- a session is resumed ---


def test_a_session_is_taken_up_where_it_was_and_the_old_connection_is_void() -> None:
    run = ready(3)
    done = run.tell(hailed(2, hello(1, resume=True)))
    assert done == [do.LetGo(LINE, close=True), do.Admit(2, 1, 3, resumed=True)]
    assert run.backup.follows(2, 1) and not run.backup.follows(LINE, 1)
    assert run.tell(event.Committed(LINE, 1, 4), event.Bye(LINE, "bye"), event.Lost(LINE, "reset")) == []
    assert run.tell(event.SwitchoverAsked(LINE, "move")) == [] and run.stands(Phase.READY)


def test_a_refused_resume_frees_its_primary_only_once_that_is_durable() -> None:
    run = ready()
    done = run.tell(hailed(2, hello(2, resume=True)))
    assert kinds(done) == [do.LetGo, do.Save, do.CloseStandby, do.Refused]
    assert done[1].role == "none" and refusal(done).renounced and run.stands(Phase.ENDING)
    late: list[event.Event] = [
        event.Committed(LINE, 1, 2),
        event.Applied(1, 2),
    ]  # in the hands of the thread of the broken connection
    assert run.tell(*late, event.Gone(), *late) == [do.ReleaseRoom()] and run.stands(Phase.EMPTY)


def test_a_late_hello_of_the_same_host_frees_nobody() -> None:
    run = Run(term=4, owner="a")
    run.tell(event.LookedUp(hailed(LINE, hello(4))), event.Started(LINE))
    answer = refusal(run.tell(hailed(2, hello(4, resume=True))))
    assert not answer.renounced and not answer.fenced and run.stands(Phase.SEEDING)


# --- epochs ---


def test_an_epoch_is_acknowledged_once_it_is_the_appliers() -> None:
    run = seeding()
    done = run.tell(event.Committed(LINE, 1, 1, ("10.0.0.1",), stays=True, data="the epoch"))
    assert kinds(done) == [do.Tell, do.Apply, do.Prove, do.Send]
    assert done[1] == do.Apply(1, 1, "the epoch") and done[3] == do.Send(LINE, FrameType.ACK, 1, 1)
    assert (run.now.addresses, run.now.stays) == (("10.0.0.1",), True)
    assert kinds(run.tell(event.Committed(LINE, 1, 2))) == [do.Apply, do.Send] and not run.now.stays
    assert run.tell(event.Committed(LINE, 1, 1, stays=True)) == [do.Send(LINE, FrameType.ACK, 1, 1)], "again"
    assert not run.now.stays


def test_an_acknowledgement_waits_for_room() -> None:
    run = ready()
    for epoch in (2, 3):
        assert kinds(run.tell(event.Committed(LINE, 1, epoch, crowded=True))) == [do.Apply, do.AwaitRoom]
    assert run.tell(event.Applied(1, 2, crowded=True)) == []
    assert run.tell(event.Applied(1, 3)) == [do.Send(LINE, FrameType.ACK, 1, 3)]


def test_a_primary_that_does_not_wait_is_stopped_and_nothing_of_it_is_taken() -> None:
    run = ready()
    with pytest.raises(BadFrame, match="epoch 3 came after 1"):
        run.tell(event.Committed(LINE, 1, 3))
    for epoch in range(2, WINDOW_MAX + 2):
        run.tell(event.Committed(LINE, 1, epoch, crowded=True))
    before = len(run.done)
    with pytest.raises(Unbridled):
        run.tell(event.Committed(LINE, 1, WINDOW_MAX + 2, crowded=True))
    assert len(run.done) == before and run.now.standby.committed == WINDOW_MAX + 1


@pytest.mark.parametrize("make", [deciding, promoting, promoted])
def test_nothing_is_acknowledged_after_a_decision(make: Callable[[], Run]) -> None:
    run = make()
    assert run.tell(event.Committed(LINE, 1, 3), event.Committed(LINE, 2, 3), event.Committed(LINE, 1, 2)) == []
    assert run.now.standby.committed == 2


def test_an_acknowledgement_that_waited_is_not_sent_once_it_is_being_decided() -> None:
    run = ready(1)
    run.tell(event.Committed(LINE, 1, 2, crowded=True), WITH_ARBITER, event.ArbiterRead(WITH_ARBITER, "a", 1, MINE))
    assert run.stands(Phase.DECIDING) and run.tell(event.Applied(1, 2)) == [] and run.now.standby.applied == 2


# --- a replica ends ---

ENDS: dict[str, event.Event] = {
    "torn": event.Broken(1, "torn"),
    "bye": event.Bye(LINE, "bye"),
    "hopeless": event.Lost(LINE, "too large", hopeless=True),
    "stop": event.Stop(),
}


@pytest.mark.parametrize("why", ENDS)
@pytest.mark.parametrize("make", [seeding, ready])
def test_that_it_cannot_take_over_is_durable_then_told_then_the_standby_goes(make: Callable[[], Run], why: str) -> None:
    run = make()
    was = run.phase.shown
    done = run.tell(ENDS[why])
    renounced(done)
    assert run.stands(Phase.ENDING) and not run.backup.follows(LINE, 1) and run.now.standby.promotable()
    told = only(run.tell(event.Gone()), do.Tell)
    assert (told.event, told.was) == ("renounced", was) and run.stands(Phase.EMPTY) and not run.backup.busy


def test_a_disk_that_is_full_keeps_nobody_waiting() -> None:
    run = ready()
    run.fails = {do.Save: RemusError("no space")}
    renounced(run.tell(event.Broken(1, "torn")))
    assert run.stands(Phase.ENDING)


@pytest.mark.parametrize("why", ENDS)
@pytest.mark.parametrize("make", [promoting, promoted])
def test_a_vm_that_this_host_took_over_is_not_given_up(make: Callable[[], Run], why: str) -> None:
    run = make()
    before = run.phase
    assert run.tell(ENDS[why]) == [] and run.phase is before


def test_a_session_that_is_ended_for_good_leaves_nothing_for_later() -> None:
    run = ready()
    done = run.tell(event.Bye(LINE, "unprotect", forget=True))
    renounced(done)
    assert only(done, do.Save).changes["owner"] == "" and not only(done, do.CloseStandby).keep_images
    run.tell(event.Gone())
    assert do.StartStandby in kinds(run.tell(event.LookedUp(hailed(2, hello(0, "c")))))


def test_a_lost_connection_leaves_the_replica_and_silence_ends_a_copy_alone() -> None:
    for run in (seeding(), ready()):
        before = run.phase
        assert run.tell(event.Lost(LINE, "reset")) == [do.LetGo(LINE, close=False)] and run.phase is before
        assert run.tell(event.CopySilent(9, 60_000)) == [], "of another session"
        run.fails = {do.RequireSilence: RefusedForSafety("a was heard again")}
        assert not set(kinds(run.tell(event.CopySilent(1, 60_000)))) - {do.RequireSilence} and run.phase is before
        run.fails = {}
        done = run.tell(event.CopySilent(1, 60_000))
        assert (do.CloseStandby in kinds(done)) is (before is Phase.SEEDING) and do.Send not in kinds(done)
    here = seeding()
    renounced(here.tell(event.CopySilent(1, 60_000)))


def test_a_daemon_that_is_stopped_waits_for_a_session_that_begins() -> None:
    run = Run()
    run.tell(event.LookedUp(hailed(LINE, hello())))
    assert run.tell(event.Stop()) == [do.Later(event.Stop())]


# --- a takeover ---


def test_a_takeover_step_by_step() -> None:
    run = ready(2, addresses=("10.0.0.1",))
    assert run.tell(WITH_ARBITER) == [do.ReadArbiter(WITH_ARBITER, "a", 1)]
    assert kinds(run.tell(event.Committed(LINE, 1, 3, ("10.0.0.1",)))) == [do.Apply, do.Send], "nothing is staked yet"
    run.tell(event.Applied(1, 3))
    assert run.tell(event.ArbiterRead(WITH_ARBITER, "a", 1, MINE)) == [do.Claim("a", 1)]
    done = run.tell(event.Claimed(Verdict.WON))
    assert kinds(done) == [do.Trouble, do.Save, do.LetGo, do.Tell, do.Drain]
    assert done[1].role == "promoting" and done[1].changes["term"] == 2 and done[1].changes["owner"] == "b"
    assert done[2].close and (done[3].event, done[3].epoch) == ("takeover", 3)
    marked, resumed = run.tell(event.Drained())
    assert marked == do.Save("promoting", ASKED.why, {"resuming": True}), "an agent that dies now may leave it running"
    assert resumed == do.Resume(stays=False)
    assert run.tell(event.Runs(3_000_000)) == [do.Announce(("10.0.0.1",), 3_000_000, WARM)]
    assert run.stands(Phase.PROMOTING), "nobody is told before the network is"
    done = run.tell(event.Announced(3_000_000, WARM))
    assert kinds(done) == [do.Save, do.ReleaseRoom, do.Tell, do.Outcome]
    assert done[0].role == "promoted" and done[2].event == "promoted"
    assert done[3] == do.Outcome(5, taken=do.TakenOver(2, 3, 2.0, WARM))
    assert run.stands(Phase.PROMOTED) and run.now.standby.owner == "b"


def test_whoever_asked_hears_that_the_arbiter_could_not_be_read() -> None:
    run = ready()
    run.tell(WITH_ARBITER)
    done = run.tell(event.TakeoverFailed(ZeroDivisionError("a bug"), WITH_ARBITER))
    assert kinds(done) == [do.Outcome] and str(done[0].error) == "a bug" and run.stands(Phase.READY)
    other = deciding()
    assert kinds(other.tell(event.TakeoverFailed(ZeroDivisionError("a bug"), ASKED))) == [do.Outcome]
    assert other.stands(Phase.DECIDING), "one of two that asked"


def test_an_operators_word_stands_for_the_arbiters() -> None:
    done = ready(2).tell(replace(WITH_ARBITER, word=True))
    assert kinds(done) == [do.Save, do.LetGo, do.Tell, do.Drain]


def test_a_newer_sign_of_life_calls_it_off() -> None:
    run = ready()
    run.fails = {do.RequireSilence: RefusedForSafety("a was heard again")}
    done = run.tell(SILENCE, event.ArbiterRead(SILENCE, "a", 1, MINE))
    assert kinds(done) == [do.ReadArbiter, do.RequireSilence, do.Outcome] and run.stands(Phase.READY)
    assert run.now.why == Reason.of(Code.TAKEOVER_REFUSED, peer="a", why="a was heard again", hint="")
    assert kinds(run.tell(event.Committed(LINE, 1, 2))) == [do.Apply, do.Send]


def test_a_session_that_began_while_the_arbiter_was_read_is_not_taken_over() -> None:
    for record in (MINE, Ownership("a", 2)):  # the second: its own claim, or that of the old session gone solo
        run = ready()
        run.tell(WITH_ARBITER, event.LookedUp(hailed(2, hello(1))), event.Gone(), event.Started(2))
        run.tell(event.Committed(2, 2, 1))
        done = run.tell(event.ArbiterRead(WITH_ARBITER, "a", 1, record))
        assert only(done, do.Outcome).error is not None and run.stands(Phase.READY)
        assert do.Claim not in kinds(done) and do.CloseStandby not in kinds(done)


def test_a_replica_that_the_arbiter_overruled_is_given_up() -> None:
    run = ready()
    run.tell(WITH_ARBITER)
    done = run.tell(event.ArbiterRead(WITH_ARBITER, "a", 1, Ownership("a", 2)))
    renounced(done)
    assert isinstance(only(done, do.Outcome).error, Overruled)
    run = deciding()
    done = run.tell(event.Claimed(Verdict.LOST, Ownership("a", 2)))
    renounced(done)
    assert isinstance(only(done, do.Outcome).error, Overruled) and run.stands(Phase.ENDING)
    assert run.tell(event.Claimed(Verdict.WON)) == [], "too late"


def test_our_own_claim_of_before_is_followed_up() -> None:
    run = ready()
    run.tell(WITH_ARBITER)
    assert run.tell(event.ArbiterRead(WITH_ARBITER, "a", 1, Ownership("b", 2))) == [do.Claim("a", 1)]


def test_an_arbiter_that_is_away_changes_nothing_and_is_told() -> None:
    run = ready()
    done = run.tell(SILENCE, event.ArbiterRead(SILENCE, "a", 1, away="timeout"))
    assert kinds(done) == [do.ReadArbiter, do.Trouble, do.Outcome] and run.stands(Phase.READY)
    assert isinstance(done[2].error, ArbiterAway)
    run = deciding(SILENCE)
    assert run.tell(event.ArbiterWaits("it is full")) == [
        do.Trouble(Reason.of(Code.ARBITER_AWAITED, peer="a", why="it is full"))
    ]
    done = run.tell(event.Claimed(Verdict.UNREACHED))
    assert isinstance(only(done, do.Outcome).error, ArbiterAway) and run.stands(Phase.READY)
    assert kinds(run.tell(event.Committed(LINE, 1, 3))) == [do.Apply, do.Send], "it follows on"
    assert kinds(run.tell(SILENCE)) == [do.ReadArbiter], "and may be asked again"


def test_a_term_that_cannot_be_saved_promotes_nothing() -> None:
    run = deciding()
    run.fails = {do.Save: RemusError("no space")}
    done = run.tell(event.Claimed(Verdict.WON))
    assert str(only(done, do.Outcome).error) == "no space" and do.Drain not in kinds(done)
    assert run.stands(Phase.READY) and run.now.standby.term == 1 and run.now.standby.owner == "a"
    assert run.backup.follows(LINE, 1)


@pytest.mark.parametrize("verdict", [Verdict.WON, Verdict.LOST, Verdict.UNREACHED])
def test_a_replica_that_is_torn_while_it_is_decided_is_never_resumed(verdict: Verdict) -> None:
    run = deciding()
    assert run.tell(event.Broken(1, "torn")) == [] and run.stands(Phase.DECIDING), "the answer may be yes already"
    done = run.tell(event.Claimed(verdict, Ownership("c", 9)))
    renounced(done)
    assert run.stands(Phase.ENDING) and only(done, do.Outcome).error is not None
    assert not {do.Drain, do.Resume} & set(kinds(done))
    assert (do.HandBack in kinds(done)) is (verdict is Verdict.WON)
    if verdict is Verdict.WON:
        assert only(done, do.Save).changes == {"owner": "a", "term": 2, "resuming": False}


def test_only_the_last_committed_epoch_is_resumed() -> None:
    run = ready(3, applied=2)
    run.tell(ASKED)
    done = run.tell(event.Drained())
    assert do.Resume not in kinds(done) and "last epoch" in str(only(done, do.Outcome).error)
    run = ready(3, applied=2)
    assert run.tell(ASKED, event.Applied(1, 3), event.Drained())[-1] == do.Resume(stays=False)


def test_what_cannot_be_resumed_is_booted_and_what_cannot_be_booted_is_given_back() -> None:
    run = promoting()
    run.tell(event.Drained())
    done = run.tell(event.NotResumed(VmError("dead")))
    assert done == [do.ColdStart(stays=False, cold="dead")]
    done = run.tell(event.TakeoverFailed(VmError("no luck")))
    assert kinds(done) == [do.Save, do.Tell, do.CloseStandby, do.HandBack, do.Outcome]
    assert (done[0].role, done[0].changes) == ("none", {"owner": "a", "term": 2, "resuming": False}) and done[
        2
    ].keep_images
    assert done[3] == do.HandBack("a", 2) and str(done[4].error) == "no luck"
    assert run.stands(Phase.ENDING)
    run.tell(event.Gone())
    answer = refusal(run.tell(hailed(2, hello(1, resume=True))))
    assert answer.renounced and not answer.fenced and answer.term == 2


def test_a_vm_that_stood_still_does_so_here() -> None:
    run = ready(2, stays=True)
    run.tell(ASKED)
    assert run.tell(event.Drained())[-1] == do.Resume(stays=True)
    assert only(run.tell(event.NotResumed(VmError("dead"))), do.ColdStart).stays
    assert only(run.tell(event.Runs(1, "cold")), do.Announce).how == Reason.of(
        Code.RESUMED_COLD, error="cold", still=True
    )


def test_one_takeover_at_a_time_and_of_a_whole_replica() -> None:
    for run, why in (
        (Run(), "no replica"),
        (seeding(), "not complete"),
        (deciding(), "being decided already"),
        (promoting(), "already promoted"),
        (promoted(), "already promoted"),
    ):
        before = run.phase
        done = run.tell(replace(ASKED, number=6))
        assert kinds(done) == [do.Outcome] and why in str(done[0].error) and run.phase is before


def test_the_last_term_there_is_stakes_nothing() -> None:
    run = Run(term=TERM_MAX - 1, owner="a")
    run.tell(event.LookedUp(hailed(LINE, hello())), event.Started(LINE), event.Committed(LINE, TERM_MAX, 1))
    done = run.tell(ASKED)
    assert kinds(done) == [do.Outcome] and "the last one" in str(done[0].error) and run.stands(Phase.READY)


# --- a switchover ---


def asks(run: Run, line: int = LINE) -> list[Any]:
    return run.tell(event.SwitchoverAsked(line, "move"))


def test_a_switchover_is_tried_once_and_whoever_asked_last_is_told() -> None:
    run = seeding()
    assert asks(run) == [do.Try(Reason.of(Code.SWITCHOVER_ASKED, why="move"))]
    run.tell(hailed(2, hello(1, resume=True)))
    assert asks(run, 2) == [] and run.backup.busy
    switch = replace(ASKED, cause="switchover")
    done = run.tell(switch)
    assert kinds(done) == [do.Decline, do.Outcome] and done[0].line == 2
    assert asks(run, 2) == [], "while it is being told"
    again = run.tell(event.Declined(done[0].serial, "no"))
    assert kinds(again) == [do.Decline]
    assert run.tell(event.Declined(again[0].serial, "no")) == []
    assert kinds(asks(run, 2)) == [do.Try]


def test_a_switchover_that_is_done_is_not_declined() -> None:
    run = ready()
    asks(run)
    done = run.tell(replace(ASKED, cause="switchover"), event.Drained(), event.Runs(1), event.Announced(1, WARM))
    assert do.Decline not in kinds(done) and run.now.asker is None and run.stands(Phase.PROMOTED)


def test_a_switchover_for_which_there_is_no_thread_is_declined() -> None:
    run = ready()
    run.fails = {do.Try: NoThread("none")}
    assert kinds(asks(run)) == [do.Try, do.Decline]


# --- an earlier agent, and an operator ---


def test_what_an_earlier_agent_left_is_swept_before_anybody_is_served() -> None:
    run = Run(role="standby", term=3, owner="a", peer="a", uuid=UUID)
    done = run.tell(event.Recover(arbiter=True))
    assert kinds(done) == [do.Save, do.Sweep, do.HandBack] and done[0].role == "none" and done[2].term == 4
    assert kinds(run.tell(event.LookedUp(hailed(LINE, hello(3))))) == [do.Later]
    run.tell(event.Gone())
    assert run.stands(Phase.EMPTY) and do.StartStandby in kinds(run.tell(event.LookedUp(hailed(LINE, hello(3)))))
    assert Run(term=3, owner="a", peer="a").tell(event.Recover(arbiter=False)) == []


@pytest.mark.parametrize("runs", [True, False])
def test_a_takeover_that_died_is_finished_or_given_back(runs: bool) -> None:
    run = Run(role="promoting", term=3, owner="b", peer="a", uuid=UUID)
    assert run.tell(event.Recover(arbiter=True)) == [do.LookIfRuns()]
    done = run.tell(event.Found(runs, 7))
    if runs:
        assert only(done, do.Save).role == "promoted" and run.stands(Phase.PROMOTED)
        assert refusal(run.tell(hailed(2, hello(2, resume=True)))).fenced
    else:
        assert kinds(done) == [do.Save, do.Tell, do.CloseStandby, do.HandBack] and done[0].changes["owner"] == "a"
        assert done[3] == do.HandBack("a", 3) and run.stands(Phase.ENDING)
    assert run.tell(event.Found(runs, 7)) == [], "once"


def test_without_a_replica_the_file_counts_and_with_one_it_does_not() -> None:
    other = event.Durable("fenced", 9, "c", "c", quarantined=True)
    for run in (seeding(), ready(), deciding(), promoting()):
        before = run.now.durable
        assert not run.backup.rereads and run.tell(event.Read(other)) == [] and run.now.durable == before
    for run in (Run(), promoted()):
        run.tell(event.Read(other))
        assert (run.phase, run.now.standby.term, run.now.standby.owner) == (Phase.EMPTY, 9, "c")
    runs = promoted()  # its last word could not be saved
    runs.tell(event.Read(event.Durable("promoting", 2, "b", "a")))
    assert runs.stands(Phase.PROMOTED)


def test_a_vm_is_forgotten_once_nothing_of_it_is_here() -> None:
    run = ready()
    run.tell(event.Lost(LINE, "reset"))
    assert kinds(run.tell(event.Forget(1))) == [do.Outcome] and run.stands(Phase.READY), "it may be the only copy"
    assert kinds(run.tell(event.Forget(2, lose_replica=True))) == [do.Save, do.CloseStandby]
    assert run.tell(event.Gone())[-1] == do.LookIfThere()
    assert kinds(run.tell(event.LookedUp(hailed(2, hello(1))))) == [do.Later], "nobody comes in meanwhile"
    done = run.tell(event.LookedIfThere(there=False))
    assert kinds(done) == [do.SetAside, do.Save, do.Tell, do.Outcome] and done[3] == do.Outcome(2)
    assert done[1].changes["owner"] == "" and run.now.standby.owner == "" and run.stands(Phase.EMPTY)


@pytest.mark.parametrize("fails", [True, False])
def test_what_libvirt_has_here_is_not_forgotten(fails: bool) -> None:
    run = Run(role="promoted", term=3, owner="b", peer="a")
    assert run.tell(event.Forget(1)) == [do.LookIfThere()]
    assert kinds(run.tell(event.LookedUp(hailed(2, hello(2))))) == [do.Later], "nobody is fenced for what is forgotten"
    done = run.tell(event.LookedIfThere(there=not fails, error=VmError("away") if fails else None))
    assert kinds(done) == [do.Outcome] and done[0].error is not None
    assert run.stands(Phase.PROMOTED) and run.now.standby.owner == "b"
    run.fails = {do.SetAside: OSError("denied")}
    done = run.tell(event.Forget(2), event.LookedIfThere(there=False))
    assert kinds(done) == [do.LookIfThere, do.SetAside, do.Outcome] and run.stands(Phase.PROMOTED)


@pytest.mark.parametrize("make", [seeding, ready, deciding, promoting])
def test_a_vm_that_somebody_uses_is_not_forgotten(make: Callable[[], Run]) -> None:
    run = make()
    before = run.phase
    assert kinds(run.tell(event.Forget(1, lose_replica=True))) == [do.Outcome] and run.phase is before
    waits = ready()
    waits.tell(event.Lost(LINE, "reset"))
    assert kinds(waits.tell(event.Forget(1, lose_replica=True, tried=True))) == [do.Outcome]
