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

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from register_world import World

HOST, CHOICE = st.integers(0, 2), st.integers(0, 3)
FAULT = st.sampled_from(["none", "none", "none", "unsent", "lost", "late", "mute"])
SCRIPT = st.lists(st.tuples(FAULT, st.none() | st.tuples(HOST, CHOICE)), max_size=6)


class RegisterMachine(RuleBasedStateMachine):
    """Rules: a host's step, with what goes wrong in it; a swap that arrives late."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(host=HOST, choice=CHOICE, script=SCRIPT, forgetful=st.booleans())
    def step_with_faults(self, host: int, choice: int, script: list, forgetful: bool) -> None:
        self.world.register.script = list(script)
        self.world.forgetful = forgetful
        self.world.step(host, choice)
        self.world.register.script = []
        self.world.forgetful = False

    @rule(host=HOST, choice=CHOICE)
    def step(self, host: int, choice: int) -> None:
        self.world.step(host, choice)

    @rule(which=st.integers(0, 5))
    def a_late_swap_arrives(self, which: int) -> None:
        register = self.world.register
        if register.late:
            register.apply(*register.late.pop(which % len(register.late)))
        self.world.check()

    def teardown(self) -> None:
        world = self.world
        while world.register.late:
            self.a_late_swap_arrives(0)
        for _ in range(6):
            for number, one in enumerate(world.hosts):
                # A session that nobody acknowledges is given up; all else goes on with what it was about to do.
                held = one.role == "session" and not world.speaks(one)
                if held or one.role in ("taking", "taken", "giving", "solo", "silent"):
                    world.step(number, 1 if held else 0)
        assert any(world.speaks(one) for one in world.hosts), f"stuck: {world.hosts}, {world.register.record}"


class TestRegister(RegisterMachine.TestCase):
    settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
