# SPDX-License-Identifier: Apache-2.0
"""The gate's queue and the rule together: no schedule that is tried breaks a promise, and mistakes are found."""

from __future__ import annotations

import os

import pytest

from remusdb.core.release import postgresql
from remusdb.core.release.frames import Segment
from remusdb.core.release.rule import CommitRule, Flow, Judged
from remusdb.net.hold import HoldQueue
from tests.model.release_queue_world import Broken, World

SCHEDULES = int(os.environ.get("REMUSDB_SCHEDULES", "200"))
STEPS = 300


@pytest.mark.parametrize("part", range(4))
def test_no_schedule_breaks_a_promise(part: int) -> None:
    early = 0
    for seed in range(part, SCHEDULES, 4):
        world = World(seed)
        world.run(STEPS)
        early += world.early_bytes
    assert early > 100 * SCHEDULES / 4  # else nothing was tried


class ListedLate(HoldQueue):
    """The list is what is open when the epoch is released, not when it was cut."""

    def name_flows(self) -> None:
        before = self.flows
        super().name_flows()
        self.flows = before


class NotCounted(CommitRule):
    """A frame passes whatever of its connection waits."""

    def _of(self, segment: Segment, frame: bytes, now: float) -> Judged:
        judged = super()._of(segment, frame, now)
        return Judged(judged.flow, judged.early or (judged.flow is not None and judged.flow.open))


class ForgetsOpenOnes(CommitRule):
    """Room is made at the cost of a connection that is open."""

    def _room(self) -> bool:
        while len(self._flows) >= self._settings.flows_max:
            del self._flows[next(iter(self._flows))]
        return True


class ListsHalf(CommitRule):
    """A connection that holds something is not listed: its BEGIN's reply waits, so what harm can it do?"""

    def open_flows(self) -> list:  # type: ignore[type-arg]
        held = {int.from_bytes(key[-2:], "big") for (key, _vlan), flow in self._flows.items() if flow.held}
        return [one for one in super().open_flows() if one.key.client_port not in held]


class LeavesTwice(CommitRule):
    """A frame that left counts for two."""

    def left(self, flow: Flow, count: int = 1) -> None:
        flow.held = max(0, flow.held - 2 * count)


@pytest.mark.parametrize("rule", [NotCounted, ListsHalf, LeavesTwice])
def test_a_mistake_in_the_rule_is_found(rule: type[CommitRule]) -> None:
    with pytest.raises(Broken):
        _all(rule=rule)


def test_a_list_of_another_moment_is_found() -> None:
    with pytest.raises(Broken):
        _all(queue=ListedLate)


def test_a_begin_that_passes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: postgresql.PostgresReader, payload: bytes, dscp: int) -> bool:
        del dscp
        return self.open if not payload else self._walk(self._rest + payload) or self.open

    monkeypatch.setattr(postgresql.PostgresReader, "read", read)
    with pytest.raises(Broken):
        _all()


def test_a_chain_that_passes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "_TAGS", postgresql._TAGS | {b"COMMIT", b"BEGIN"})
    with pytest.raises(Broken):
        _all()


def _all(queue: type[HoldQueue] = HoldQueue, rule: type[CommitRule] = CommitRule) -> None:
    for seed in range(SCHEDULES):
        World(seed, queue, rule).run(STEPS)
