# SPDX-License-Identifier: Apache-2.0
"""Claims on the arbiter's record under every schedule that hypothesis finds.

A swap may be lost, done without an answer, or done much later; reads fail; hosts race between a read and its swap, and
die before they learn what became of a claim, which they then make again.

Invariant, asserted after every step (`World.check`): at most one host's output may leave. That is a host which is
alone in its term (it took over, went solo, or never had a backup), or one whose session's backup still acknowledges,
which the backup ceases to do, for good unless its claim was UNREACHED, before it claims to take over. And that one host
knows everything that clients were told before, by whichever host. No two
owners in the record ever have the same term, until it is removed.

Liveness, asserted at the end: when faults cease, one host's output may leave.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from remusdb.arbiter import register
from remusdb.core.ownership import Ownership, Verdict, open_session, take_over
from tests.model.register_world import Fault, Script, World
from tests.model.schedule import SCHEDULES

# Of each question to the register; half of the steps go without faults altogether.
FAULTS: list[Fault] = ["none", "none", "none", "unsent", "lost", "late", "late", "mute"]
SCHEDULE = st.lists(st.integers(0, 239), min_size=60, max_size=400)


class Run:
    """A schedule: numbers, of which each decides what comes next."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers: Iterator[int] = iter(numbers)
        self.world = World()

    def go(self) -> None:
        """Until the numbers end, and then until nothing is under way any more."""
        try:
            while True:
                self._move()
        except StopIteration:
            pass
        self._settle()

    def _one_of(self, count: int) -> int:
        return next(self._numbers) % count

    def _move(self) -> None:
        world = self.world
        if world.register.late and self._one_of(4) == 0:
            self._late_swap_arrives(self._one_of(len(world.register.late)))
            return
        able = [number for number, one in enumerate(world.hosts) if world.steps(one)]
        host, choice, troubled = able[self._one_of(len(able))], self._one_of(4), self._one_of(2)
        world.register.script = self._script() if troubled else []
        world.forgetful = bool(troubled and self._one_of(4) == 0)
        event(f"{world.hosts[host].role}, {'troubled' if troubled else 'untroubled'}")
        world.step(host, choice)
        world.register.script, world.forgetful = [], False

    def _script(self) -> Script:
        return [
            (FAULTS[self._one_of(len(FAULTS))], (self._one_of(3), self._one_of(4)) if self._one_of(3) == 0 else None)
            for _ in range(1 + self._one_of(5))
        ]

    def _late_swap_arrives(self, which: int) -> None:
        self.world.register.apply(*self.world.register.late.pop(which))
        self.world.check()

    def _settle(self) -> None:
        world = self.world
        world.register.script, world.forgetful = [], False
        while world.register.late:
            self._late_swap_arrives(0)
        for _ in range(6):
            for number, one in enumerate(world.hosts):
                # A session that nobody acknowledges is given up; all else goes on with what it was about to do.
                held = one.role == "session" and not world.speaks(one)
                if held or one.role in ("taking", "taken", "giving", "solo", "silent"):
                    world.step(number, 1 if held else 0)
        assert any(world.speaks(one) for one in world.hosts), f"stuck: {world.hosts}, {world.register.record}"


@given(SCHEDULE)
@settings(max_examples=2 * SCHEDULES)
def test_at_most_one_host_speaks_and_in_the_end_one_does(numbers: list[int]) -> None:
    Run(numbers).go()


@pytest.mark.parametrize(
    ("faults", "verdict"),  # of read, swap, read, swap, ...
    [
        ("", Verdict.WON),
        ("unsent", Verdict.UNREACHED),
        ("none unsent", Verdict.UNREACHED),
        ("none mute", Verdict.WON),
        ("none mute unsent", Verdict.UNKNOWN),
        ("none lost unsent", Verdict.UNKNOWN),
        ("none lost none none", Verdict.WON),
        ("none late none unsent", Verdict.UNKNOWN),
        ("none lost none lost none lost none lost none lost", Verdict.UNKNOWN),
    ],
)
def test_what_is_known_of_a_claim_after_each_fault(faults: str, verdict: Verdict) -> None:
    record = World().register
    register.claim(record, open_session("a", 5))
    record.script = [(fault, None) for fault in faults.split()]  # type: ignore[misc]
    assert register.claim(record, take_over("b", "a", 5)).verdict is verdict
    record.script = []
    assert register.claim(record, take_over("b", "a", 5)).verdict is Verdict.WON
    assert record.record == Ownership("b", 6)
    assert not any(record.apply(*late) for late in record.late)  # a swap that comes late does nothing
