# SPDX-License-Identifier: Apache-2.0
"""When a gate may open, what is saved before and after it, and that nobody is left waiting."""

from __future__ import annotations

from typing import Any

import pytest

from remusdb.core import primary_effects as effects
from remusdb.core import primary_events as events
from remusdb.core.ownership import Claim, Ownership, Verdict
from remusdb.core.pipeline import PrimaryState
from remusdb.core.primary import ASK_AGAIN_S, WORD_S
from remusdb.core.terms import JUMP_MAX, TERM_MAX
from remusdb.errors import BadFrame, Fenced, NotProtected, PeerRefused, RefusedForSafety, RemusError
from remusdb.reasons import Code, Reason
from tests.unit.primary_rig import WON, Rig

RENOUNCED = events.Renounced("its disk is full")
BROKEN = Reason.of(Code.OTHER, why="the disk broke")
UNKNOWN, UNREACHED = Claim(Verdict.UNKNOWN, None), Claim(Verdict.UNREACHED, None)
FREE = {"role": "solo", "wanted": True, "armed": False, "gates": []}


def is_free(changes: dict[str, Any]) -> bool:
    return changes.get("armed") is False and changes.get("role") in ("solo", "none")


# --- from the welcome to the first epoch ---


def test_that_the_agent_may_take_over_is_on_record_before_output_is_held_and_that_before_the_first_cut() -> None:
    rig = Rig().begin()
    done = rig.tell(events.Copied({"gates": [1], "autostart": True}))
    kinds = [type(effect) for effect in done]
    assert kinds == [effects.Save, effects.InstallGates, effects.HoldOutput, effects.StartEpochs]
    assert rig.saved[-1]["armed"] is True and rig.saved[-1]["gates"] == [1] and rig.saved[-1]["autostart"] is True


def test_nothing_is_held_where_that_cannot_be_recorded() -> None:
    rig = Rig().begin()
    rig.fails = effects.Save
    with pytest.raises(RemusError, match="no space left"):
        rig.tell(events.Copied())
    assert not any(isinstance(effect, effects.HoldOutput | effects.StartEpochs) for effect in rig.done)


def test_an_earlier_workers_gates_stay_shut_until_the_agent_keeps_a_fresh_session() -> None:
    rig = Rig(armed=True)
    assert rig.tell(events.Opened()) == [effects.AdoptGates()]
    rig.tell(events.Adopted(), events.Welcomed(5))
    assert not rig.opened
    rig.tell(events.Begun(5))
    assert rig.at(effects.OpenGates) < rig.at(effects.Save), "a death in between must leave a VM that is called held"
    assert rig.saved[0]["armed"] is False
    assert effects.InstallGates() not in rig.tell(events.Copied()), "they are there"


def test_a_term_is_on_record_before_the_session_uses_it() -> None:
    rig = Rig(fails=effects.Save)
    rig.tell(events.Opened(), events.Welcomed(5))
    with pytest.raises(RemusError, match="no space"):
        rig.tell(events.Begun(5))
    assert rig.phase is PrimaryState.IDLE and rig.primary.pipeline.term == 4


def test_an_agents_welcome_takes_a_primary_a_bounded_way() -> None:
    rig = Rig(term=5)
    rig.tell(events.Welcomed(6), events.Welcomed(5 + JUMP_MAX))
    assert rig.saved == [], "it is the session that writes a term that is agreed on"
    with pytest.raises(PeerRefused, match=f"agent beta is in term {TERM_MAX - 1}, this host in 5") as caught:
        rig.tell(events.Welcomed(TERM_MAX - 1))
    assert rig.saved == [{"term": 5 + JUMP_MAX}] and rig.primary.pipeline.term == 5 + JUMP_MAX
    assert "protect it again" in caught.value.hint


def test_an_honest_agent_far_ahead_is_reached_in_a_few_tries() -> None:
    rig, tries = Rig(term=5), 0
    while True:
        try:
            rig.tell(events.Welcomed(5 + 3 * JUMP_MAX + 7))
            break
        except PeerRefused:
            tries += 1
    assert tries == 3 and rig.phase is PrimaryState.IDLE


@pytest.mark.parametrize("record", [Ownership("alpha", 500), Ownership("", 500, previous="alpha")])
def test_a_host_restored_from_a_backup_learns_its_term_from_its_own_record(record: Ownership) -> None:
    """Once it asked somebody to delete the record by hand."""
    rig = Rig(term=5)
    with pytest.raises(PeerRefused, match="in term 500 already"):
        rig.tell(events.SessionClaimed(Claim(Verdict.LOST, record), "/remusdb/pg"))
    assert rig.saved == [{"term": 500}]


def test_an_arbiters_record_takes_a_host_a_bounded_way() -> None:
    rig = Rig(term=5)
    with pytest.raises(PeerRefused):
        rig.tell(events.SessionClaimed(Claim(Verdict.LOST, Ownership("alpha", TERM_MAX - 1)), "/remusdb/pg"))
    assert rig.saved == [{"term": 5 + JUMP_MAX}]


@pytest.mark.parametrize("record", [Ownership("gamma", 500), Ownership("", 500, previous="gamma")])
def test_another_hosts_record_teaches_nothing(record: Ownership) -> None:
    rig = Rig(term=5)
    with pytest.raises(PeerRefused, match="has owned VM pg since term 500"):
        rig.tell(events.SessionClaimed(Claim(Verdict.LOST, record), "/remusdb/pg"))
    assert rig.saved == []


# --- the agent's words ---


def test_only_what_was_acknowledged_in_the_term_in_force_goes_out() -> None:
    rig = Rig().protect()
    rig.cut(2)
    assert rig.tell(events.Acked(4, 3), events.Acked(6, 3)) == []
    assert rig.tell(events.Acked(5, 3)) == [effects.ReleaseEpochs(3)]
    assert rig.tell(events.Acked(5, 2)) == []
    with pytest.raises(BadFrame):
        rig.tell(events.Acked(5, 9))


def test_a_lost_agent_holds_output_and_one_that_comes_back_is_sent_the_rest() -> None:
    rig = Rig().hold()
    assert rig.phase is PrimaryState.HELD and not rig.opened
    done = rig.tell(events.Resumed(5, 2, 0, line=9))
    assert done[:2] == [effects.ReleaseEpochs(2), effects.Attach(9, 5, 2, 0)]
    assert rig.reports[-1].state == "protected" and rig.reports[-1].event == "resumed"


def test_the_agents_word_frees_the_vm_and_the_record_comes_after_the_deed() -> None:
    rig = Rig().hold()
    rig.tell(RENOUNCED)
    assert rig.at(effects.TakeDown(open_gates=True)) < rig.at(
        effects.Save({**FREE, "why": rig.saved[-1]["why"], "term": 5})
    )
    assert rig.at(effects.StopWork) < rig.at(effects.TakeDown) and rig.reports[-1].state == "solo"
    assert rig.done[-1] == effects.End()


def test_a_record_that_cannot_be_written_keeps_no_vm_mute_and_nobody_waiting() -> None:
    rig = Rig().hold()
    rig.fails = effects.Save
    with pytest.raises(RemusError, match="no space"):
        rig.tell(RENOUNCED)
    assert rig.opened and rig.done[-1] == effects.End()


def test_a_fenced_primary_never_lets_anything_go() -> None:
    rig = Rig().hold()
    rig.tell(events.FencedOff(6, "beta has it"))
    assert rig.at(effects.DropHeld) < rig.at(effects.End) and rig.saved[-1]["role"] == "fenced"
    before = len(rig.done)
    for event in (events.Acked(5, 2), events.Acked(6, 2), RENOUNCED, events.ArbiterSaid(WON), events.TimeIsUp("word")):
        assert rig.tell(event) == []
    assert rig.tell(events.Unprotect(peer_is_dead=True))[0].error.id == "E-FENCED"  # type: ignore[union-attr]
    assert not rig.opened and len(rig.done) == before + 1


def test_where_nothing_was_armed_a_stranger_that_fences_is_hearsay() -> None:
    rig = Rig()
    rig.tell(events.Opened())
    with pytest.raises(PeerRefused, match="beta has it"):
        rig.tell(events.FencedOff(9, "beta has it"))
    assert rig.phase is PrimaryState.IDLE and rig.saved == []


def test_an_agent_that_counts_what_cannot_be_is_lost_again() -> None:
    rig = Rig().begin()
    rig.tell(events.Lost("cut"))
    rig.fails = effects.Attach
    with pytest.raises(RemusError):
        rig.tell(events.Resumed(5, 0, 10_000, line=1))
    rig.fails = None
    assert effects.Attach(2, 5, 0, 7) in rig.tell(events.Resumed(5, 0, 7, line=2)), "an honest one is heard"


# --- how it ends ---


def test_unprotect_waits_for_the_agents_word() -> None:
    rig = Rig().protect()
    assert rig.tell(events.Unprotect()) == [
        effects.SayBye("unprotect was asked for", forget=True),
        effects.SetTimer("word", WORD_S),
    ]
    assert not rig.opened
    rig.tell(RENOUNCED)
    assert rig.opened and rig.saved[-1]["role"] == "none" and rig.answer("unprotect") is None


@pytest.mark.parametrize("peer_is_dead", [False, True])
def test_an_agent_that_is_heard_must_give_its_word_whatever_is_said_of_it(peer_is_dead: bool) -> None:
    rig = Rig().protect()
    rig.tell(events.Unprotect(peer_is_dead), events.TimeIsUp("word"))
    assert isinstance(rig.answer("unprotect"), RefusedForSafety) and not rig.opened
    rig.tell(events.Acked(5, 1), events.Lost("cut"))
    assert rig.reports[-1].event == "held", "it is protected as before"


def test_an_operators_word_stands_for_that_of_an_agent_that_is_not_heard() -> None:
    rig = Rig().hold()
    rig.tell(events.Unprotect(peer_is_dead=False), events.TimeIsUp("word"))
    assert not rig.opened
    rig = Rig().hold()
    rig.tell(events.Unprotect(peer_is_dead=True), events.TimeIsUp("word"))
    assert rig.opened and rig.answer("unprotect") is None


def test_in_the_initial_copy_the_agent_has_nothing_to_take_over_with() -> None:
    rig = Rig().begin()
    rig.tell(events.Unprotect(), events.TimeIsUp("word"))
    assert rig.answer("unprotect") is None and rig.saved[-1]["role"] == "none"
    with pytest.raises(NotProtected, match="ended meanwhile"):
        rig.tell(events.Copied())
    assert rig.tell(events.Abandoned(BROKEN))[-1] == effects.TakeDown(open_gates=False)


def test_a_copy_that_failed_before_an_epoch_was_cut_leaves_the_vm_as_it_was() -> None:
    rig = Rig().begin()
    rig.tell(events.Failed(BROKEN))
    assert rig.primary.failed_in_copy and not rig.opened
    rig.tell(events.Abandoned(BROKEN))
    assert rig.saved[-1]["role"] == "none" and rig.reports[-1].state == "failed"
    assert effects.TakeDown(open_gates=False) in rig.done, "no gates were made"


@pytest.mark.parametrize("again", [False, True])
def test_a_copy_that_failed_after_an_epoch_was_cut_needs_the_agents_word(again: bool) -> None:
    rig = Rig().begin()
    rig.tell(events.Copied())
    rig.cut()
    rig.tell(events.Failed(BROKEN), events.Acked(5, 1), events.Abandoned(BROKEN, again))
    assert not rig.opened and effects.SetTimer("word", WORD_S) in rig.done
    rig.tell(RENOUNCED)
    assert rig.opened and rig.saved[-1]["role"] == ("solo" if again else "none")


def test_without_that_word_output_stays_held() -> None:
    rig = Rig().begin()
    rig.tell(events.Copied())
    rig.cut()
    rig.tell(events.Abandoned(BROKEN), events.TimeIsUp("word"))
    assert not rig.opened and rig.reports[-1].state == "held" and rig.done[-1] == effects.End()


def test_an_unreachable_agent_that_may_have_taken_over_keeps_the_gates_of_an_earlier_worker_shut() -> None:
    rig = Rig(armed=True)
    rig.tell(events.Opened(), events.Adopted(), events.Abandoned(BROKEN, again=True))
    assert not rig.opened and rig.at(effects.TakeDown(open_gates=False)) and rig.saved == []


def test_a_vm_that_crashed_falls_silent_at_once_and_is_taken_over() -> None:
    rig = Rig().protect()
    assert rig.tell(events.Failed(BROKEN))[-1] == effects.LookAtVm()
    assert rig.tell(events.VmEnds(crashed=True)) == [effects.FallSilent(), effects.AskWhoEndedIt()]
    rig.tell(events.VmEnded(wanted=False, with_host=False, why=Reason.of(Code.ENDED)))
    assert not rig.opened and rig.reports[-1].state == "failed" and effects.ClosePeer() in rig.done


def test_a_vm_that_somebody_wanted_off_is_not_taken_over() -> None:
    rig = Rig().protect()
    rig.tell(events.Failed(BROKEN), events.VmEnds(crashed=False))
    assert effects.FallSilent() not in rig.done
    rig.tell(events.VmEnded(wanted=True, with_host=False, why=Reason.of(Code.ENDED_BY_GUEST)))
    assert effects.SayBye("the guest shut itself down") in rig.done
    rig.tell(RENOUNCED)
    assert rig.saved[-1]["role"] == "none"


@pytest.mark.parametrize("ends_with_host", [False, True])
def test_a_vm_that_ends_with_its_host_is_taken_over_or_protected_again_as_configured(ends_with_host: bool) -> None:
    rig = Rig(ends_with_host=ends_with_host).protect()
    rig.tell(events.Failed(BROKEN), events.VmEnds(crashed=False))
    rig.tell(events.VmEnded(wanted=True, with_host=True, why=Reason.of(Code.HOST_STOPS)))
    assert (rig.done[-1] == effects.SetTimer("word", WORD_S)) is ends_with_host
    assert (rig.done[-1] == effects.End()) is not ends_with_host


def test_after_a_failure_output_is_held_until_the_agent_gives_its_word() -> None:
    rig = Rig().protect()
    rig.tell(events.Failed(BROKEN, changed=True), events.VmLives())
    assert rig.reports[-1].event == "changed" and not rig.opened
    rig.tell(events.TimeIsUp("word"))
    assert not rig.opened and rig.reports[-1].why.code is Code.PEER_UNHEARD_AT_END
    rig.tell(RENOUNCED)
    assert rig.opened and rig.saved[-1]["role"] == "solo"


def test_a_word_that_came_while_the_vm_was_looked_at_counts() -> None:
    rig = Rig().protect()
    rig.tell(events.Failed(BROKEN), RENOUNCED)
    assert not rig.opened, "whether the VM is there is not known"
    rig.tell(events.VmLives())
    assert rig.opened


# --- going on alone ---


def test_the_arbiter_is_asked_once_the_agent_stayed_lost_for_as_long_as_configured() -> None:
    rig = Rig().hold()
    assert rig.done[-1] == effects.SetTimer("solo", 2.0)
    assert rig.tell(events.TimeIsUp("solo")) == [effects.AskArbiter(5)]
    rig.tell(events.ArbiterSaid(WON))
    assert rig.at(effects.Save({"term": 6})) < rig.at(effects.TakeDown(open_gates=True))
    assert rig.saved[-1]["role"] == "solo" and rig.saved[-1]["term"] == 6


def test_without_an_arbiter_nobody_goes_on_alone() -> None:
    rig = Rig(solo_after_s=None).hold()
    assert not any(isinstance(effect, effects.SetTimer) for effect in rig.done)
    assert rig.tell(events.TimeIsUp("solo")) == []


def test_a_lost_answer_is_asked_for_until_it_is_definite() -> None:
    rig = Rig().hold()
    rig.tell(events.TimeIsUp("solo"))
    for claim in (UNKNOWN, UNREACHED, UNREACHED):
        assert rig.tell(events.ArbiterSaid(claim))[-1] == effects.SetTimer("solo", ASK_AGAIN_S)
        assert rig.phase is PrimaryState.DECIDING and not rig.opened
        assert rig.tell(events.TimeIsUp("solo")) == [effects.AskArbiter(5)]


def test_while_the_arbiter_is_asked_the_session_is_not_taken_up_again() -> None:
    rig = Rig().hold()
    rig.tell(events.TimeIsUp("solo"))
    assert rig.tell(events.Resumed(5, 2, 0, line=3)) == []
    rig.tell(events.ArbiterSaid(WON))
    assert effects.HangUp(3, "the session is over") in rig.done
    assert not any(isinstance(effect, effects.Attach) for effect in rig.done)


def test_and_is_taken_up_again_once_the_answer_is_no() -> None:
    rig = Rig().hold()
    rig.tell(events.TimeIsUp("solo"), events.Resumed(5, 2, 0, line=3))
    rig.tell(events.ArbiterSaid(UNREACHED))
    assert effects.Attach(3, 5, 2, 0) in rig.done and rig.phase is PrimaryState.PROTECTED
    assert rig.tell(events.TimeIsUp("solo")) == []


def test_what_was_given_back_is_claimed_in_a_session_of_its_own() -> None:
    rig = Rig().hold()
    rig.tell(events.TimeIsUp("solo"))
    given = Claim(Verdict.LOST, Ownership("", 6, previous="alpha"))
    assert rig.tell(events.ArbiterSaid(given)) == [effects.AskArbiter(5, given_back=True)]
    rig.tell(events.ArbiterSaid(UNKNOWN))
    assert rig.tell(events.TimeIsUp("solo")) == [effects.AskArbiter(5, given_back=True)], "until it is definite"
    rig.tell(events.ArbiterSaid(Claim(Verdict.WON, Ownership("alpha", 7))))
    assert rig.saved[-1]["term"] == 7 and rig.opened


@pytest.mark.parametrize("term", [5, 7, 500, TERM_MAX - 1])
def test_only_the_takeover_of_this_session_gives_a_vm_back(term: int) -> None:
    rig = Rig().hold()
    rig.tell(events.TimeIsUp("solo"))
    rig.tell(events.ArbiterSaid(Claim(Verdict.LOST, Ownership("", term, previous="alpha"))))
    assert rig.phase is PrimaryState.HELD and not rig.opened and rig.saved[-1]["role"] == "protected"


def test_a_claim_that_was_won_is_followed_up_once_the_disk_has_room() -> None:
    rig = Rig().hold()
    rig.tell(events.TimeIsUp("solo"))
    rig.fails = effects.Save
    rig.tell(events.ArbiterSaid(WON))
    assert not rig.opened and rig.reports[-1].why.code is Code.ALONE_FAILED
    rig.fails = None
    assert rig.tell(events.TimeIsUp("solo")) == [effects.AskArbiter(5)]
    rig.tell(events.ArbiterSaid(UNREACHED))
    assert rig.phase is PrimaryState.DECIDING, "it was won: nobody else may have it"
    rig.tell(events.TimeIsUp("solo"), events.ArbiterSaid(WON))
    assert rig.opened and {"term": 6} in rig.saved


# --- the planned move ---


def switching() -> Rig:
    rig = Rig().protect()
    rig.tell(events.Switchover(still=False))
    return rig


def test_that_the_vm_is_stopped_for_a_move_is_on_record_before_it_is() -> None:
    rig = switching()
    assert rig.at(effects.Save({"paused": True})) < rig.at(effects.StopAndCut)
    rig = Rig().protect()
    rig.fails = effects.Save
    with pytest.raises(RemusError):
        rig.tell(events.Switchover(still=False))
    assert effects.StopAndCut() not in rig.done and not rig.primary.switching


def test_the_agent_is_asked_once_the_last_epoch_is_committed() -> None:
    rig = switching()
    rig.cut()
    assert effects.SayTakeOver() not in rig.tell(events.LastCut(2))
    assert effects.SayTakeOver() in rig.tell(events.Acked(5, 2))
    rig.tell(events.FencedOff(6, "it took over"))
    assert rig.answer("switchover") is None and effects.StartVm() not in rig.done


@pytest.mark.parametrize("how", ["declined", "lost", "late", "failed"])
def test_a_move_that_is_off_lets_the_vm_run_on_here(how: str) -> None:
    rig = switching()
    rig.cut()
    if how == "failed":
        rig.tell(events.NotCut("libvirt does not answer"))
    else:
        rig.tell(events.LastCut(2))
    if how == "late":
        rig.tell(events.TimeIsUp("commit"))
    elif how == "declined":
        rig.tell(events.Acked(5, 2), events.Declined("it has no memory"))
    elif how == "lost":
        rig.tell(events.Lost("cut"), events.Resumed(5, 2, 0, line=1))
    assert rig.at(effects.StartVm) < rig.at(effects.CutOn) and rig.saved[-1] == {"paused": False}
    assert isinstance(rig.answer("switchover"), RefusedForSafety)
    assert not rig.primary.switching


def test_nobody_starts_a_vm_that_is_just_being_stopped() -> None:
    rig = switching()
    rig.tell(events.Lost("cut"), events.Resumed(5, 1, 0, line=1))
    assert effects.StartVm() not in rig.done
    rig.cut()
    rig.tell(events.LastCut(2))
    assert effects.StartVm() in rig.done and effects.SayTakeOver() not in rig.done


def test_a_vm_that_stood_still_by_somebodys_will_is_not_started() -> None:
    rig = Rig().protect()
    rig.tell(events.Switchover(still=True))
    rig.cut()
    rig.tell(events.LastCut(2), events.Acked(5, 2), events.Declined("no"))
    assert effects.StartVm() not in rig.done and effects.CutOn() in rig.done


def test_an_agent_that_does_not_answer_may_have_taken_over_so_the_vm_stays_stopped() -> None:
    rig = switching()
    rig.cut()
    rig.tell(events.LastCut(2), events.Acked(5, 2), events.TimeIsUp("answer"))
    assert isinstance(rig.answer("switchover"), RefusedForSafety) and effects.StartVm() not in rig.done
    rig.tell(events.Lost("cut"), events.Resumed(5, 2, 0, line=1))
    assert effects.StartVm() in rig.done


def test_a_session_that_ends_in_a_move_leaves_no_vm_stopped() -> None:
    rig = switching()
    rig.tell(RENOUNCED)
    assert rig.at(effects.StopWork(switching=True)) < rig.at(effects.StartVm) < rig.at(effects.TakeDown)
    rig = Rig(paused=True).begin()
    assert effects.StartVm() in rig.done, "a worker died in the middle of one"


@pytest.mark.parametrize("make", [Rig, lambda: Rig().begin(), lambda: Rig().hold()])
def test_only_a_protected_vm_is_moved_and_once_at_a_time(make: Any) -> None:
    with pytest.raises(NotProtected):
        make().tell(events.Switchover(still=False))
    rig = switching()
    with pytest.raises(RefusedForSafety, match="under way"):
        rig.tell(events.Switchover(still=False))


# --- what a worker that is gone left ---


@pytest.mark.parametrize(
    ("armed", "word", "dead", "opens"),
    [(True, True, False, True), (True, False, True, True), (True, False, False, False), (False, False, False, True)],
)
def test_an_orphan_is_freed_by_the_agents_word_or_the_operators(
    armed: bool, word: bool, dead: bool, opens: bool
) -> None:
    rig = Rig(armed=armed)
    rig.tell(events.Opened())
    if armed:
        rig.tell(events.Adopted())
    command = events.UnprotectOrphan(7, word, dead, "" if word else "it is away")
    if opens:
        rig.tell(command)
        assert rig.saved[-1]["role"] == "none" and rig.answer("unprotect") is None
        assert rig.opened is armed
    else:
        with pytest.raises(RefusedForSafety, match="may have taken over"):
            rig.tell(command)
        assert not rig.opened and rig.saved == []
    assert effects.End() in rig.done


def test_fenced_is_what_an_order_is_told_after_it() -> None:
    rig = Rig().protect()
    rig.tell(events.Unprotect(), events.FencedOff(6, "it took over"))
    assert isinstance(rig.answer("unprotect"), Fenced)
