# SPDX-License-Identifier: Apache-2.0
"""Commit protection's promise, at each step of random worlds; and that mistakes in it are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from remusdb.core.release import postgresql
from remusdb.core.release.frames import OpenFlow
from remusdb.core.release.readers import MarkReader
from remusdb.core.release.rule import CommitRule, Flow
from tests.model.release_world import Broken, Step, World

WHAT = ["begin", "work", "commit_it", "chain", "send", "send", "send", "again", "ack", "lose", "swap"]
WHAT += ["cut", "commit", "leave"]
STEPS = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 2), st.sampled_from([1, 7, 30, 200])), max_size=40)
# What a session does when all goes well, so that early frames are common.
USUAL: list[Step] = [("begin", 0, 0), ("send", 0, 200), ("cut", 0, 0), ("commit", 0, 0), ("leave", 0, 9)]
AIMED = st.tuples(st.integers(0, 2), STEPS, STEPS).map(
    lambda made: made[1][:5] + [(what, made[0], size) for what, _, size in USUAL] + made[2]
)


def play(steps: list[Step], **mistake: Any) -> World:
    world = World(**mistake)
    for step in steps:
        world.step(step)
    return world


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(AIMED)
def test_no_client_has_what_the_survivor_contradicts(steps: list[Step]) -> None:
    play(steps)


@pytest.mark.parametrize("session", [0, 1, 2])
def test_a_session_inside_is_served_early_and_listed_and_an_idle_one_is_not(session: int) -> None:
    usual = [(what, session, size) for what, _, size in USUAL]
    world = play([*usual, ("work", session, 0), ("send", session, 200), ("cut", 0, 0)])
    if session == 2:  # the first marked frame waits
        first = [("work", 2, 0), ("send", 2, 200), *USUAL[2:]]
        world = play([*usual, *first, ("work", 2, 0), ("send", 2, 200), ("cut", 0, 0)])
    assert world.early == 1 and world.cuts[-1].listed == {session}
    world = play([*usual, ("commit_it", session, 0), ("send", session, 200), ("cut", 0, 0)])
    assert world.early == 0 and world.cuts[-1].listed == set()


class NoList(CommitRule):
    """Breaks nothing."""

    def open_flows(self) -> list[OpenFlow]:
        return []


class EagerMark(MarkReader):
    def read(self, payload: bytes, dscp: int) -> bool:
        super().read(payload, dscp)
        return self.open


def _eager_postgresql(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def read(self: postgresql.PostgresReader, payload: bytes, dscp: int) -> bool:
        self._walk(self._rest + payload)
        return self.open

    monkeypatch.setattr(postgresql.PostgresReader, "read", read)
    return {}


def _by_status_alone(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(postgresql, "_TAGS", postgresql._TAGS | {b"COMMIT", b"BEGIN"})
    return {}


def _gaps_unseen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def read(self: CommitRule, flow: Flow, segment: Any, frame: bytes) -> bool:
        payload = frame[segment.at : segment.at + segment.size]
        flow.next_seq = flow.most_seq = (segment.seq + segment.size) % 2**32
        return any(reader.read(payload, segment.dscp) for reader in flow.readers)

    monkeypatch.setattr(CommitRule, "_read", read)
    return {}


def _eager_mark(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("remusdb.core.release.rule.MarkReader", EagerMark)
    return {}


MISTAKES: dict[str, Callable[[pytest.MonkeyPatch], dict[str, Any]]] = {
    "the list is of after the cut": lambda _: {"late_list": True},
    "held frames are not counted": lambda _: {"uncounted": True},
    "no list": lambda _: {"rule_class": NoList},
    "BEGIN's answer is early": _eager_postgresql,
    "COMMIT AND CHAIN is taken by its status": _by_status_alone,
    "what is sent again or behind a gap is read as it comes": _gaps_unseen,
    "the first mark is early": _eager_mark,
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake = MISTAKES[name](monkeypatch)

    def breaks(steps: list[Step]) -> bool:
        try:
            play(steps, **mistake)
        except Broken:
            return True
        return False

    quick = settings(max_examples=6000, deadline=None, phases=[Phase.generate], database=None)
    try:
        find(AIMED, breaks, settings=quick)
    except NoSuchExample:
        pytest.fail(f"not found: {name}")
