# SPDX-License-Identifier: Apache-2.0
"""A term far ahead, on each way by which one is told: what is written is bounded, and nobody is stuck for good."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from remusdb.core.ownership import Claim, Ownership, Rule, Verdict
from remusdb.core.pipeline import Pipeline, PrimaryState
from remusdb.core.standby import Offer, Standby
from remusdb.core.terms import JUMP_MAX, TERM_MAX
from remusdb.errors import PeerRefused
from remusdb.state import StateStore, VmState
from remusdb.worker import learned
from remusdb.worker.greeting import AgentBehind
from remusdb.worker.learned import agree_on, greet_anew
from remusdb.worker.solo import Solo, claim_session

FAR = TERM_MAX - 1


class FakeArbiter:
    """One record, changed by the rules."""

    def __init__(self, record: Ownership | None) -> None:
        self.record = record

    def claim(self, _vm: str, rule: Rule) -> Claim:
        new = rule(self.record)
        if new is None:
            return Claim(Verdict.LOST, self.record)
        self.record = new
        return Claim(Verdict.WON, new)


class FakeSession:
    """What of a session these rules touch."""

    def __init__(self, folder: Path, term: int, record: Ownership | None = None) -> None:
        self._store = StateStore(folder)
        self.state: VmState = self._store.update("pg", role="solo", term=term, owner="alpha", peer="beta")
        self.pipeline = Pipeline(4)
        self.pipeline.term = term
        peer = SimpleNamespace(name="beta")
        self.order = SimpleNamespace(vm="pg", host="alpha", peer=peer, arbiter=SimpleNamespace(prefix="/remusdb/"))
        self.arbiter = FakeArbiter(record)

    def save(self, **changes: Any) -> None:
        self.state = self._store.update("pg", **changes)

    @property
    def on_disk(self) -> VmState:
        return self._store.load("pg")


def session(folder: Path, term: int, record: Ownership | None = None) -> Any:
    return FakeSession(folder, term, record)


def test_an_agents_welcome_takes_a_primary_a_bounded_way(tmp_path: Path) -> None:
    here = session(tmp_path, 5)
    agree_on(here, 6)
    agree_on(here, 5 + JUMP_MAX)
    assert here.on_disk.term == 5, "it is the session that writes a term that is agreed on"
    with pytest.raises(PeerRefused, match=f"agent beta is in term {FAR}, this host in 5") as caught:
        agree_on(here, FAR)
    assert here.on_disk.term == here.pipeline.term == 5 + JUMP_MAX and here.on_disk.role == "solo"
    assert "protect it again" in caught.value.hint


def test_an_honest_agent_far_ahead_is_reached_in_a_few_tries(tmp_path: Path) -> None:
    here, tries, told = session(tmp_path, 5), 0, 5 + 3 * JUMP_MAX + 7
    while True:
        try:
            agree_on(here, told)
            break
        except PeerRefused:
            tries += 1
    assert tries == 3 and here.pipeline.state is PrimaryState.IDLE


@pytest.mark.parametrize("record", [Ownership("alpha", 500), Ownership("", 500, previous="alpha")])
def test_a_host_restored_from_a_backup_learns_its_term_from_its_own_record(tmp_path: Path, record: Ownership) -> None:
    """Once it asked somebody to delete the record by hand."""
    here = session(tmp_path, 5, record)
    with pytest.raises(PeerRefused, match="in term 500 already"):
        claim_session(here, 6)
    assert here.on_disk.term == 500 and here.arbiter.record == record
    claim_session(here, 501)
    assert here.arbiter.record == Ownership("alpha", 501)


def test_an_arbiters_record_takes_a_host_a_bounded_way(tmp_path: Path) -> None:
    here = session(tmp_path, 5, Ownership("alpha", FAR))
    with pytest.raises(PeerRefused):
        claim_session(here, 6)
    assert here.on_disk.term == 5 + JUMP_MAX


@pytest.mark.parametrize("record", [Ownership("gamma", 500), Ownership("", 500, previous="gamma")])
def test_another_hosts_record_teaches_nothing(tmp_path: Path, record: Ownership) -> None:
    here = session(tmp_path, 5, record)
    with pytest.raises(PeerRefused, match="owns VM pg since term 500"):
        claim_session(here, 6)
    assert here.on_disk.term == 5


@pytest.mark.parametrize("term", [5, 7, 500, FAR])
def test_only_the_takeover_of_this_session_gives_a_vm_back(tmp_path: Path, term: int) -> None:
    here = session(tmp_path, 5, Ownership("", term, previous="alpha"))
    assert not Solo(here)._returned(here.arbiter.record)
    assert here.on_disk.term == 5 and here.arbiter.record.term == term


def test_what_was_given_back_is_taken(tmp_path: Path) -> None:
    here = session(tmp_path, 5, Ownership("", 6, previous="alpha"))
    assert Solo(here)._returned(here.arbiter.record)
    assert here.on_disk.term == 7 and here.arbiter.record == Ownership("alpha", 7)


def test_an_honest_agent_that_is_behind_is_asked_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another agent took the primary far; this one follows in its own steps, and is not waited for between them."""
    standby, here = Standby(term=5), session(tmp_path, 5 + JUMP_MAX)
    here.hello = lambda resume: here.pipeline.term

    def greet(_order: Any, term: int) -> int:
        answer = standby.hello("alpha", term, resume=False)
        if isinstance(answer, Offer):
            return answer.term
        standby.term = answer.learned
        raise AgentBehind("not yet")

    monkeypatch.setattr(learned, "greet", greet)
    agreed: Any = greet_anew(here)
    assert agreed == 6 + JUMP_MAX
    standby.term, here.pipeline.term = 5, TERM_MAX
    with pytest.raises(AgentBehind):
        greet_anew(here)
    assert standby.term > 5 + JUMP_MAX
