# SPDX-License-Identifier: Apache-2.0
"""What `Pipeline` and `Standby` answer, one call at a time: also where no correct peer would ever bring them."""

from __future__ import annotations

import pytest

from remusdb.core.pipeline import Pipeline, PrimaryState, Release
from remusdb.core.standby import Offer, Phase, Refusal, Standby
from remusdb.errors import BadFrame, Fenced, RefusedForSafety


def pipeline(*, cut: int, acked: int, term: int = 3, window: int = 3) -> Pipeline:
    """A session in `term` with so many epochs cut and acknowledged."""
    made = Pipeline(window)
    made.begin(term)
    for epoch in range(1, cut + 1):
        assert made.next_epoch() == epoch
        made.cut(epoch)
        if epoch <= acked:
            made.ack(term, epoch)
    return made


def standby(*, committed: int, term: int = 3) -> Standby:
    """The standby of a session of host `alpha`."""
    made = Standby()
    made.begin("alpha", term)
    made.up()
    for epoch in range(1, committed + 1):
        assert made.commit(term, epoch)
        made.moved(epoch)
    return made


# --- the primary ---


def test_the_window_bounds_the_epochs_in_flight() -> None:
    primary = pipeline(cut=3, acked=0)
    assert primary.next_epoch() is None and primary.in_flight == 3
    assert primary.ack(3, 1) == Release(1)
    assert primary.next_epoch() == 4 and primary.state is PrimaryState.PROTECTED


def test_epochs_are_cut_in_order() -> None:
    with pytest.raises(ValueError, match="epoch 3 cut after 1"):
        pipeline(cut=1, acked=0).cut(3)


def test_acks_are_cumulative_and_release_once() -> None:
    primary = pipeline(cut=3, acked=0)
    assert primary.ack(3, 2) == Release(2)
    assert primary.ack(3, 1) is None and primary.ack(3, 2) is None
    assert primary.ack(3, 3) == Release(3)


@pytest.mark.parametrize("term", [0, 2, 4])
def test_acks_of_another_term_are_void(term: int) -> None:
    primary = pipeline(cut=2, acked=1)
    assert primary.ack(term, 2) is None and primary.committed == 1


def test_an_ack_of_what_was_never_cut_breaks_the_protocol() -> None:
    with pytest.raises(BadFrame, match="acknowledges epoch 3, only 2 were cut"):
        pipeline(cut=2, acked=1).ack(3, 3)


@pytest.mark.parametrize("term", [2, 3, 5])
def test_a_fenced_primary_releases_nothing_in_any_term(term: int) -> None:
    primary = pipeline(cut=2, acked=1)
    primary.fence(term)
    assert primary.term == max(term, 3)
    assert [primary.ack(any_term, 2) for any_term in range(7)] == [None] * 7
    assert primary.next_epoch() is None
    primary.lost()
    primary.end()
    assert primary.state is PrimaryState.FENCED
    with pytest.raises(Fenced):
        primary.resumed(primary.term, 1)


def test_an_ended_session_releases_and_cuts_nothing() -> None:
    primary = pipeline(cut=2, acked=1)
    primary.end()
    assert primary.ack(3, 2) is None and primary.next_epoch() is None


def test_a_held_session_cuts_nothing_and_is_resumed() -> None:
    primary = pipeline(cut=4, acked=1)
    primary.lost()
    assert primary.next_epoch() is None
    assert primary.resumed(3, 2) == (Release(2), [3, 4])
    assert primary.state is PrimaryState.PROTECTED and primary.next_epoch() == 5


def test_a_session_lost_before_the_first_ack_is_held_once_an_epoch_went_out() -> None:
    primary = pipeline(cut=0, acked=0)
    primary.lost()
    assert primary.state is PrimaryState.SEEDING
    primary = pipeline(cut=2, acked=0)
    primary.lost()
    assert primary.state is PrimaryState.HELD
    assert primary.resumed(3, 1) == (Release(1), [2])


@pytest.mark.parametrize("committed", [0, 4])
def test_an_agent_that_holds_less_than_it_said_or_more_than_was_cut(committed: int) -> None:
    primary = pipeline(cut=3, acked=1)
    primary.lost()
    with pytest.raises(BadFrame, match=f"holds epoch {committed}, outside 1..3"):
        primary.resumed(3, committed)


def test_only_a_held_session_is_resumed_and_only_in_its_term() -> None:
    with pytest.raises(Fenced):
        pipeline(cut=2, acked=1).resumed(3, 1)
    primary = pipeline(cut=2, acked=1)
    primary.lost()
    with pytest.raises(Fenced, match="answers in term 4"):
        primary.resumed(4, 1)


@pytest.mark.parametrize("term", [2, 3])
def test_a_session_begins_in_a_newer_term_only_and_counts_anew(term: int) -> None:
    primary = pipeline(cut=2, acked=1)
    with pytest.raises(Fenced, match=f"term {term} is not newer than 3"):
        primary.begin(term)
    primary.begin(4)
    assert (primary.term, primary.captured, primary.committed, primary.next_epoch()) == (4, 0, 0, 1)


def test_going_alone_takes_a_newer_term_and_a_session_that_is_held() -> None:
    for primary in (pipeline(cut=0, acked=0), pipeline(cut=2, acked=1)):
        with pytest.raises(Fenced, match="cannot go on alone"):
            primary.decide()
    primary = pipeline(cut=2, acked=1)
    primary.lost()
    with pytest.raises(Fenced, match="cannot go on alone"):
        primary.solo(9)
    primary.decide()
    assert primary.ack(3, 2) is None, "nothing is released while the answer may be yes"
    with pytest.raises(Fenced):
        primary.resumed(3, 2)
    with pytest.raises(Fenced, match="term 3 is not newer than 3"):
        primary.solo(3)
    primary.solo(4)
    assert primary.state is PrimaryState.SOLO and primary.term == 4


def test_who_went_alone_knows_no_backup_any_more() -> None:
    primary = pipeline(cut=2, acked=1)
    primary.lost()
    primary.decide()
    primary.solo(4)
    assert primary.ack(3, 2) is None and primary.ack(4, 2) is None and primary.next_epoch() is None
    primary.lost()
    primary.end()
    assert primary.state is PrimaryState.SOLO
    for term in (3, 4):
        with pytest.raises(Fenced):
            primary.resumed(term, 1)
    primary.begin(5)
    assert primary.state is PrimaryState.SEEDING  # type: ignore[comparison-overlap]  # begin() changed it


def test_a_fenced_primary_does_not_go_on_alone() -> None:
    primary = pipeline(cut=2, acked=1)
    primary.fence(4)
    with pytest.raises(Fenced, match="the session is fenced"):
        primary.solo(9)


# --- the standby ---


def refused(agent: Standby, primary: str, term: int, *, resume: bool) -> Refusal:
    answer = agent.hello(primary, term, resume)
    assert isinstance(answer, Refusal) and answer.term == agent.term
    assert not (answer.fenced and answer.renounced)
    return answer


def deciding() -> Standby:
    agent = standby(committed=4)
    agent.decide()
    return agent


def test_terms_offered_are_newer_than_all_that_either_side_knows() -> None:
    assert Standby(5).hello("alpha", 2, resume=False) == Offer(6, False, 0)
    assert Standby(5).hello("alpha", 9, resume=False) == Offer(10, False, 0)


def test_a_session_is_resumed_only_in_its_own_term_and_with_a_replica() -> None:
    agent = standby(committed=4)
    assert agent.hello("alpha", 3, resume=True) == Offer(3, True, 4)
    assert standby(committed=0).hello("alpha", 3, resume=True) == Offer(3, True, 0)  # in its initial sync
    for other, term in ((agent, 2), (Standby(3), 3), (standby(committed=0), 4), (agent, 4)):
        refused(other, "alpha", term, resume=True)


def test_a_refused_resume_means_that_this_side_cannot_take_over() -> None:
    """The primary goes on alone then; frames of the broken connection must not complete the replica after that."""
    for agent, term in ((standby(committed=0), 4), (standby(committed=1), 4)):
        assert refused(agent, "alpha", term, resume=True).renounced
        assert not agent.commit(3, agent.committed + 1) and agent.promotable() is not None


def test_a_resume_of_an_older_session_leaves_the_replica_alone() -> None:
    """It gets no word: a HELLO of its own that came late may have begun the newer one, which then breaks off."""
    agent = standby(committed=4)
    answer = refused(agent, "alpha", 2, resume=True)
    assert not answer.fenced and not answer.renounced
    assert agent.promotable() is None and agent.commit(3, 5)
    agent.renounce()
    assert refused(agent, "alpha", 2, resume=True).renounced


def test_an_older_session_of_the_owner_is_told_that_its_replica_is_gone_of_a_stranger_nothing() -> None:
    assert refused(Standby(4, owner="alpha"), "alpha", 3, resume=True).renounced
    answer = refused(Standby(4), "alpha", 3, resume=True)
    assert not answer.renounced and not answer.fenced


@pytest.mark.parametrize("term", [2, 3, 99])
def test_a_stranger_that_resumes_gets_no_word_and_costs_nothing(term: int) -> None:
    """Whoever may begin is `succession`'s; only who ran the VM here fences, and only a replica's owner frees it."""
    for agent in (standby(committed=4), Standby(3, owner="alpha"), deciding()):
        before = agent.phase
        answer = refused(agent, "beta", term, resume=True)
        assert not answer.fenced and not answer.renounced
        assert (agent.owner, agent.phase) == ("alpha", before)


def test_a_promoted_side_refuses_everybody() -> None:
    """And fences whom it refuses, once it runs the VM: before, it may yet fail."""
    promoting, running = standby(committed=2), standby(committed=2)
    promoting.promote(4)
    running.promote(4)
    running.runs()
    for agent in (promoting, running, Standby(4, phase=Phase.PROMOTED, owner="beta")):
        before = agent.phase
        for resume in (True, False):
            answer = refused(agent, "alpha", 9, resume=resume)
            assert answer.fenced is (agent is not promoting) and answer.term == 4 and not answer.renounced
        assert not agent.accepts(3) and not agent.accepts(4)
        assert not agent.commit(3, 3) and not agent.commit(4, 3)
        agent.renounce()
        assert agent.phase is before
        with pytest.raises(RefusedForSafety):
            agent.begin("alpha", 9)
        with pytest.raises(RefusedForSafety, match="already promoted"):
            agent.promote(9)


def test_while_the_arbiter_is_asked_nothing_is_acknowledged_and_nobody_gets_a_word() -> None:
    agent = deciding()
    assert not agent.accepts(3) and not agent.commit(3, 5) and not agent.commit(3, 4)
    for term, resume in ((3, True), (4, True), (3, False), (9, False)):
        answer = refused(agent, "alpha", term, resume=resume)
        assert not answer.fenced and not answer.renounced
    assert agent.phase is Phase.DECIDING and agent.committed == 4


def test_a_question_that_the_arbiter_never_saw_leaves_the_replica_as_it_was() -> None:
    agent = deciding()
    agent.stay()
    assert agent.commit(3, 5) and agent.hello("alpha", 3, resume=True) == Offer(3, True, 5)


def test_the_arbiter_says_yes_or_no() -> None:
    agent = deciding()
    assert agent.promote(4) == 4 and agent.phase is Phase.PROMOTING
    agent = deciding()
    agent.renounce()
    agent.stay()  # too late
    assert agent.promotable() is not None and refused(agent, "alpha", 3, resume=True).renounced


def test_only_a_whole_replica_asks_and_only_once() -> None:
    promoted = standby(committed=2)
    promoted.promote(4)
    for agent, why in (
        (Standby(), "no replica"),
        (standby(committed=0), "not complete"),
        (promoted, "already promoted"),
        (deciding(), "being decided already"),
    ):
        with pytest.raises(RefusedForSafety, match=why):
            agent.decide()


def test_a_takeover_that_cannot_be_run_is_given_back_in_a_newer_term() -> None:
    agent = standby(committed=2)
    agent.promote(4)
    agent.give_back("alpha")
    assert agent.term == 4 and agent.promotable() is not None and not agent.commit(3, 3)
    assert refused(agent, "alpha", 3, resume=True).renounced
    assert agent.hello("alpha", 3, resume=False) == Offer(5, False, 0)


def test_epochs_commit_in_order_and_a_repeated_one_is_acknowledged_again() -> None:
    agent = standby(committed=2)
    assert agent.commit(3, 1) and agent.commit(3, 2) and agent.committed == 2
    with pytest.raises(BadFrame, match="epoch 4 came after 2"):
        agent.commit(3, 4)


@pytest.mark.parametrize("term", [2, 4])
def test_epochs_of_another_term_are_void(term: int) -> None:
    agent = standby(committed=2)
    assert not agent.commit(term, 3) and agent.committed == 2


def test_what_is_applied_was_committed_and_comes_in_order() -> None:
    agent = standby(committed=2)
    with pytest.raises(ValueError, match="epoch 3 applied after 2, committed 2"):
        agent.moved(3)
    agent.commit(3, 3)
    agent.commit(3, 4)
    with pytest.raises(ValueError, match="epoch 4 applied after 2"):
        agent.moved(4)


def test_a_takeover_resumes_from_the_last_committed_epoch_applied_or_not() -> None:
    agent = standby(committed=2)
    agent.commit(3, 3)
    assert agent.promote(4) == 3 and agent.applied == 2 and agent.term == 4
    agent.moved(3)
    assert agent.applied == 3


@pytest.mark.parametrize("term", [2, 3])
def test_a_takeover_needs_a_newer_term(term: int) -> None:
    with pytest.raises(RefusedForSafety, match="not newer"):
        standby(committed=2).promote(term)


def test_no_takeover_without_a_whole_replica() -> None:
    gone = standby(committed=2)
    gone.renounce()
    for agent, why in (
        (Standby(), "no replica"),
        (standby(committed=0), "not complete"),
        (gone, "no replica"),
    ):
        assert agent.promotable() is not None
        with pytest.raises(RefusedForSafety, match=why):
            agent.promote(9)


def test_a_new_session_drops_the_replica_at_once() -> None:
    agent = standby(committed=2)
    with pytest.raises(RefusedForSafety, match="not newer"):
        agent.begin("alpha", 3)
    agent.begin("alpha", 4)
    assert (agent.committed, agent.applied, agent.phase) == (0, 0, Phase.STARTING)
    assert not agent.accepts(4) and agent.promotable() is not None
    agent.up()
    assert agent.phase is Phase.SEEDING and agent.accepts(4)
    assert agent.promotable() is not None
