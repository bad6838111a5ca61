# SPDX-License-Identifier: Apache-2.0
"""The rules of the model are not true because nothing can break them: mistakes that are planted in the product's own
decisions are found."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from remusdb.core import backup_takeover, ownership
from remusdb.core import primary_effects as effects
from remusdb.core.backup_effects import HandBack, Save
from remusdb.core.pipeline import Pipeline, Release
from remusdb.core.primary import Leaving, Primary
from remusdb.core.standby import Refusal, Standby
from remusdb.reasons import Code, Reason
from tests.model import backup_host
from tests.model.backup_host import Agent
from tests.model.schedule import EVERYBODY, FAULT, OPERATOR, check, number, protected

if TYPE_CHECKING:
    from collections.abc import Callable

    from remusdb.core.primary_effects import Steps

    Mistake = Callable[[pytest.MonkeyPatch], None]

BROKEN = Reason.of(Code.OTHER, why="it broke")


MOST = 20_000  # schedules; the slowest is found within a few thousand


def restless(names: str, seed: int) -> list[int]:
    """A schedule with more faults than chance would have, and time between them in which everybody works."""
    rng = random.Random(seed)
    kinds = rng.choices((EVERYBODY, FAULT, 0, OPERATOR), (4, 4, 2, 1), k=10 << seed % 3)
    chosen = [rng.randrange(len(names)) + number(names, kind, rng.randrange(1 << 12)) for kind in kinds]
    return protected(names, seed % 4) + chosen


def swap(steps: Steps, first: type, then: type) -> Steps:
    """The same, but what is `first` is done after what is `then`."""
    late: list[effects.Effect] = []
    for effect in steps:
        if isinstance(effect, first):
            late.append(effect)
            continue
        yield effect
        if isinstance(effect, then):
            yield from late
            late.clear()
    yield from late


# --- in core/primary.py and what it stands on ---


def free_on_record_before_the_gate_opens(patch: pytest.MonkeyPatch) -> None:
    """As before commit 227234a: a death between the two leaves a mute VM that nothing calls held."""
    finish = Primary._finish
    patch.setattr(Primary, "_finish", lambda self, leaving: swap(finish(self, leaving), effects.TakeDown, effects.Save))


def open_on_record_before_the_gate_opens(patch: pytest.MonkeyPatch) -> None:
    """The same, where a fresh session begins with the gates of an earlier worker."""
    begun = Primary._begun
    patch.setattr(Primary, "_begun", lambda self, event: swap(begun(self, event), effects.OpenGates, effects.Save))


def cut_before_it_is_on_record_that_the_agent_may_take_over(patch: pytest.MonkeyPatch) -> None:
    copied = Primary._copied
    patch.setattr(Primary, "_copied", lambda self, event: swap(copied(self, event), effects.Save, effects.StartEpochs))


def a_primary_that_lost_its_backup_speaks(patch: pytest.MonkeyPatch) -> None:
    def lost(self: Primary, why: str) -> Steps:
        self.pipeline.lost()
        yield from self._finish(Leaving("solo", BROKEN))

    patch.setattr(Primary, "_lost", lost)


def an_operator_who_asked_is_not_waited_for(patch: pytest.MonkeyPatch) -> None:
    """unprotect opens the gates without the agent's word."""

    def leave(self: Primary, leaving: Leaving) -> Steps:
        yield effects.SayBye("it ends", forget=leaving.asked)
        yield from self._finish(leaving)

    patch.setattr(Primary, "_leave", leave)


def the_last_epochs_go_out_when_the_agent_is_back(patch: pytest.MonkeyPatch) -> None:
    """Also those that it does not hold."""
    resumed = Pipeline.resumed

    def more(self: Pipeline, term: int, committed: int) -> tuple[Release | None, list[int]]:
        _, again = resumed(self, term, committed)
        return Release(self.captured), again

    patch.setattr(Pipeline, "resumed", more)


def a_fenced_side_still_releases(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Pipeline, "fence", lambda self, term: None)
    finish = Primary._finish

    def fenced(self: Primary, term: int, why: str) -> Steps:
        yield from finish(self, Leaving("solo", BROKEN))

    patch.setattr(Primary, "_fenced", fenced)


def a_vm_that_crashed_is_free(patch: pytest.MonkeyPatch) -> None:
    """A failed cut of a VM that lives opens the gates at once."""

    def lives(self: Primary) -> Steps:
        yield from self._finish(Leaving("solo", BROKEN))

    patch.setattr(Primary, "_lives", lives)
    patch.setattr(Primary, "_vm_ended", lambda self, event: lives(self))
    patch.setattr(Primary, "_no_word", lambda self: lives(self))


# --- in core/backup.py and what it stands on ---


def every_takeover_is_allowed(patch: pytest.MonkeyPatch) -> None:
    def rule(host: str, _owner: str, term: int) -> Any:
        return lambda _now: ownership.Ownership(host, term + 1)

    patch.setattr(backup_host, "take_over", rule)


def a_void_claim_stays(patch: pytest.MonkeyPatch) -> None:
    """A takeover that the arbiter allowed to an agent which died is never given back."""
    begin = Agent._begin

    def forgets(self: Agent, effect: Any) -> None:
        if not isinstance(effect, HandBack):
            begin(self, effect)

    patch.setattr(Agent, "_begin", forgets)


def a_takeover_that_died_is_taken_for_one_that_runs(patch: pytest.MonkeyPatch) -> None:
    found = backup_takeover.found
    patch.setattr(backup_takeover, "found", lambda my, event: found(my, event.__class__(True, 1)))


def a_takeover_in_its_last_step_is_given_back(patch: pytest.MonkeyPatch) -> None:
    """An agent that died as the VM began to run: the VM ended since, and what it said is lost."""
    drained = backup_takeover.drained

    def unmarked(my: Any) -> Any:
        for effect in drained(my):
            if not isinstance(effect, Save):
                yield effect

    patch.setattr(backup_takeover, "drained", unmarked)


def a_newer_session_fences_its_own_host(patch: pytest.MonkeyPatch) -> None:
    hello = Standby.hello

    def fences(self: Standby, primary: str, term: int, resume: bool) -> Any:
        answer = hello(self, primary, term, resume)
        if isinstance(answer, Refusal) and resume and term < self.term and not answer.renounced:
            return Refusal(answer.reason, answer.term, fenced=True)
        return answer

    patch.setattr(Standby, "hello", fences)


# With an arbiter or not, and the schedule that is known to find it: it is tried first.
MISTAKES: list[tuple[Mistake, bool, int]] = [
    (free_on_record_before_the_gate_opens, False, 87),
    (open_on_record_before_the_gate_opens, False, 2139),
    (cut_before_it_is_on_record_that_the_agent_may_take_over, False, 770),
    (a_primary_that_lost_its_backup_speaks, False, 0),
    (an_operator_who_asked_is_not_waited_for, False, 78),
    (the_last_epochs_go_out_when_the_agent_is_back, False, 10),
    (a_fenced_side_still_releases, False, 55),
    (a_vm_that_crashed_is_free, False, 22),
    (every_takeover_is_allowed, True, 2053),
    (a_void_claim_stays, True, 14),
    (a_takeover_that_died_is_taken_for_one_that_runs, False, 2),
    (a_takeover_in_its_last_step_is_given_back, False, 83),
    (a_newer_session_fences_its_own_host, False, 2),
]


@pytest.mark.timeout(0)
@pytest.mark.parametrize(("mistake", "arbiter", "by"), MISTAKES, ids=[mistake.__name__ for mistake, _, _ in MISTAKES])
def test_a_mistake_is_found(mistake: Mistake, arbiter: bool, by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check(restless("ab", by), "ab", arbiter)  # without the mistake nothing is wrong with it
    mistake(monkeypatch)
    for seed in (by, *range(MOST)):
        numbers = restless("ab", seed)
        try:
            check(numbers, "ab", arbiter)
        except AssertionError:
            return
    pytest.fail("not found")
