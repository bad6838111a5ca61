# SPDX-License-Identifier: Apache-2.0
"""The epoch protocol under every schedule that hypothesis finds: crashes, cuts, late acks, takeovers.

What must hold, asserted in `epoch_world` where it would break:
  - at a takeover, the backup's VM knows everything that clients were ever told (nothing acknowledged is lost),
  - after a takeover, the old primary says nothing that the backup's VM does not know, and never speaks freely,
  - the standby is exactly some epoch that was cut, memory and device state,
  - terms grow strictly, and are on a disk before they are used,
  - between two correct sides nothing is a protocol error;
and when faults end, protection or its orderly end is reached: no schedule leaves both waiting.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from remusdb.core.pipeline import PrimaryState
from remusdb.core.standby import Phase
from tests.model.epoch_agent import Agent
from tests.model.epoch_primary import Primary
from tests.model.epoch_world import CELLS, Died, World

FEW = st.integers(0, 4)
CHOICE = st.integers(0, 11)
Step = Callable[[], None]


def enabled(*steps: tuple[object, Step]) -> list[Step]:
    """The steps whose condition holds."""
    return [step for condition, step in steps if condition]


class EpochMachine(RuleBasedStateMachine):
    """Rules: one step of one side, the guest's work, a fault, or a while in which both sides run fairly."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(Primary, Agent)
        self.host_dead = self.host_will_die = False

    # --- what each side can do now ---

    def primary_steps(self) -> list[Step]:
        primary = self.world.primary
        if self.host_dead or primary.pipeline is None:
            return []
        return enabled(
            *[(primary.stream is not None, primary.hear)] * 2,
            (primary.lost and primary.stream is None, primary.reconnect),
            (primary.to_seed, primary.seed_one),
            (primary.seeded, primary.arm),
            (primary.cutting, primary.cut_epoch),
            (primary.to_ship, primary.ship_one),
        )

    def agent_steps(self) -> list[Step]:
        agent = self.world.agent
        if agent.core is None:
            return []
        return enabled(
            (self.world.connecting, agent.accept),
            (agent.greeting, agent.greet),
            *[(agent.stream is not None, agent.hear)] * 4,
            (agent.gathered, agent.commit),
            (agent.owed, agent.ack),
            (agent.promoting, agent.resume),
            (agent.to_apply, agent.apply_one),
        )

    def do(self, side: Primary | Agent, step: Step) -> None:
        try:
            step()
        except Died:
            side.crash()

    # --- rules ---

    @rule(cell=st.integers(0, CELLS - 1), says=st.booleans())
    def guest_works(self, cell: int, says: bool) -> None:
        guest = self.world.guest
        if guest.alive:
            guest.write(cell)
            if says:
                self.world.primary.gate.emit(guest.clock)

    @rule(choice=CHOICE)
    def primary_acts(self, choice: int) -> None:
        steps = self.primary_steps()
        if steps:
            self.do(self.world.primary, steps[choice % len(steps)])

    @rule(choice=CHOICE, which=FEW)
    def agent_acts(self, choice: int, which: int) -> None:
        self.world.agent.which = which
        steps = self.agent_steps()
        if steps:
            self.do(self.world.agent, steps[choice % len(steps)])

    @rule()
    def agent_promotes(self) -> None:
        if self.world.agent.core is not None:
            self.do(self.world.agent, self.world.agent.promote)

    @rule(unprotect=st.booleans())
    def operator(self, unprotect: bool) -> None:
        """Protects or unprotects."""
        primary = self.world.primary
        if unprotect and primary.state is PrimaryState.PROTECTED:
            self.do(primary, primary.unprotect)
        elif not self.host_dead and primary.pipeline is None and primary.disk.role != "fenced":
            self.do(primary, primary.protect)

    @rule(agent_gets=FEW, primary_gets=FEW)
    def cut_connection(self, agent_gets: int, primary_gets: int) -> None:
        for side in (self.world.primary, self.world.agent):
            if side.stream is not None:
                side.stream.connection.break_off(agent_gets, primary_gets)

    @rule(agent_gets=FEW, primary_gets=FEW, rounds=st.integers(2, 6))
    def connection_blinks(self, agent_gets: int, primary_gets: int, rounds: int) -> None:
        """Cut in full flight, and time enough to be taken up again."""
        self.run(1)
        self.cut_connection(agent_gets, primary_gets)
        self.run(rounds)

    @rule(choice=CHOICE)
    def an_old_ack_comes(self, choice: int) -> None:
        if self.world.acks:
            acks = self.world.acks
            self.do(self.world.primary, lambda: self.world.primary.hear_late(acks[-1 - choice % len(acks)]))

    @rule(primary_does=st.booleans())
    def patience_ends(self, primary_does: bool) -> None:
        """A side whose peer is away in the initial copy gives the copy up."""
        primary, agent = self.world.primary, self.world.agent
        if primary_does and primary.pipeline is not None and primary.pipeline.away:
            self.do(primary, primary.give_up)
        elif not primary_does and agent.core is not None and agent.core.phase is Phase.SEEDING:
            self.do(agent, agent.give_up_copy)

    @rule()
    def primary_crashes(self) -> None:
        self.world.primary.crash()

    @rule()
    def agent_crashes_or_starts(self) -> None:
        if self.world.agent.core is None:
            self.world.agent.start()
        else:
            self.world.agent.crash()

    @rule(instants=st.integers(0, 3))
    def a_crash_comes(self, instants: int) -> None:
        """Around one of the next durable writes, the writer dies."""
        self.world.fuse = instants

    @initialize(rounds=st.integers(0, 20), dies=st.booleans())
    def begin(self, rounds: int, dies: bool) -> None:
        self.host_will_die = dies
        self.world.primary.protect()
        self.run(rounds)

    @rule(rounds=st.integers(1, 6))
    def run(self, rounds: int) -> None:
        """Both sides do all that they can, in turns: so schedules reach the states where faults matter."""
        for number in range(rounds):
            self.guest_works(number % CELLS, True)
            for side, steps in ((self.world.agent, self.agent_steps), (self.world.primary, self.primary_steps)):
                for step in steps():
                    if step in steps():
                        self.do(side, step)

    def kill_primary_host(self) -> None:
        """QEMU, daemon and network at once; what is under way still arrives."""
        self.host_dead = True
        self.world.guest.alive = self.world.primary.gate.passing = False
        self.world.primary.crash()

    def teardown(self) -> None:
        """Faults end, or the primary's host dies for good: the protocol must get somewhere."""
        self.world.fuse = None
        if self.host_will_die:
            self.kill_primary_host()
        self.settle()
        primary, agent = self.world.primary, self.world.agent
        if self.host_dead and agent.disk.role == "standby":
            agent.promote()
            self.settle()
            assert self.world.resumed is not None or agent.core is None or agent.core.committed == 0
        event(f"ends {'dead' if self.host_dead else primary.disk.role}, backup {agent.disk.role}")

    def settle(self) -> None:
        """Both sides run, with daemons that are started again, until nothing more happens but epochs."""
        primary, agent = self.world.primary, self.world.agent
        if agent.core is None:
            agent.start()
        for rounds in range(60):
            if rounds > 5 and self.at_rest():
                return
            if not self.host_dead and primary.pipeline is None and primary.disk.role == "protected":
                primary.protect()
            if rounds == 30:  # a HELLO that came late may have begun a session on a dead connection
                self.patience_ends(primary_does=True)
            self.run(1)
        raise AssertionError(f"primary {primary.disk.role} {primary.state}, backup {agent.disk.role} wait for ever")

    def at_rest(self) -> bool:
        """Nobody waits: protected, fenced, or unprotected and free to speak."""
        primary, agent = self.world.primary, self.world.agent
        if self.host_dead:
            return not agent.promoting and not agent.to_apply
        if agent.disk.role in ("promoting", "promoted"):
            return primary.disk.role == "fenced" and not primary.gate.passing
        if primary.disk.role == "protected":
            return primary.state is PrimaryState.PROTECTED and self.world.spoken >= self.world.guest.clock - 8
        return primary.gate.passing and primary.state is not PrimaryState.SEEDING


EpochMachine.TestCase.settings = settings(max_examples=800, stateful_step_count=50, deadline=None)
TestEpochs = pytest.mark.timeout(600)(EpochMachine.TestCase)


# --- single schedules: that the rules above are not true because nothing ever happens ---


def protected() -> EpochMachine:
    """Both sides, protected for some epochs."""
    machine = EpochMachine()
    machine.begin(rounds=20, dies=False)
    assert machine.world.primary.state is PrimaryState.PROTECTED and machine.world.agent.standby.committed >= 3
    return machine


def test_the_host_dies_and_the_backup_knows_all_that_was_said() -> None:
    machine = protected()
    said = machine.world.spoken
    assert said > 3
    machine.kill_primary_host()
    machine.world.agent.promote()
    machine.settle()
    assert machine.world.resumed is not None and machine.world.resumed >= said


def test_an_ack_that_comes_after_the_takeover_lets_out_only_what_the_backup_knows() -> None:
    machine = protected()
    world = machine.world
    world.primary.cut_epoch()
    while world.primary.to_ship:
        world.primary.ship_one()
    while world.agent.line.connection.to_agent:
        world.agent.hear()
    world.agent.commit()
    world.agent.ack()
    said = world.spoken
    world.agent.promote()
    while world.agent.promoting:
        world.agent.resume()
    machine.settle()  # the acks that are under way reach the old primary now
    assert world.resumed is not None and said < world.spoken <= world.resumed
    assert world.primary.state is PrimaryState.FENCED


def test_a_cut_connection_is_taken_up_again_with_the_epochs_in_flight() -> None:
    machine = protected()
    world = machine.world
    while world.primary.session.next_epoch() is not None:
        machine.guest_works(0, True)
        world.primary.cut_epoch()
    committed, term = world.agent.standby.committed, world.agent.standby.term
    machine.cut_connection(agent_gets=1, primary_gets=0)
    machine.settle()
    assert world.primary.state is PrimaryState.PROTECTED
    assert world.agent.standby.term == term and world.agent.standby.committed >= committed + 2


def gathered() -> EpochMachine:
    """Protected, and a session's thread of the agent has a whole epoch in its hands, not yet committed."""
    machine = protected()
    machine.world.primary.cut_epoch()
    while machine.world.primary.to_ship:
        machine.world.primary.ship_one()
    while not machine.world.agent.gathered:
        machine.world.agent.hear()
    return machine


def test_a_thread_of_the_old_connection_commits_while_the_new_one_sends_the_epoch_again() -> None:
    machine = gathered()
    world = machine.world
    machine.cut_connection(agent_gets=0, primary_gets=0)
    world.primary.hear()
    world.primary.reconnect()
    world.agent.accept()
    world.agent.greet()
    before = world.agent.standby.committed
    world.agent.commit()
    assert world.agent.standby.committed == before + 1
    machine.settle()
    assert world.primary.state is PrimaryState.PROTECTED and world.terms == [1]


def test_a_thread_of_an_old_session_commits_nothing_into_the_new_one() -> None:
    machine = gathered()
    world = machine.world
    world.primary.crash()
    world.primary.protect()
    world.agent.accept()
    world.agent.greet()
    owed = len(world.agent.owed)
    world.agent.commit()
    assert world.agent.standby.committed == 0 and len(world.agent.owed) == owed
    machine.settle()
    assert world.primary.state is PrimaryState.PROTECTED and world.terms == [1, 2]


def test_an_agent_that_dies_while_it_takes_over_remembers_it() -> None:
    """Nobody speaks then, and the primary is told that it must not."""
    machine = protected()
    machine.world.agent.promote()
    machine.world.agent.crash()
    machine.settle()
    assert machine.world.primary.state is PrimaryState.FENCED and machine.world.resumed is None


def test_a_connection_cut_before_the_first_ack_is_taken_up_too() -> None:
    machine = EpochMachine()
    machine.begin(rounds=0, dies=False)
    while not machine.world.agent.owed:
        machine.run(1)
    assert machine.world.primary.session.committed == 0
    machine.cut_connection(agent_gets=0, primary_gets=0)
    machine.settle()
    assert machine.world.primary.state is PrimaryState.PROTECTED and machine.world.terms == [1]


@pytest.mark.parametrize("agent_gets", range(8))
def test_a_connection_cut_in_the_initial_copy_is_taken_up_where_it_was(agent_gets: int) -> None:
    """Whatever was lost on the way goes out again, once: deltas that come twice, or never, would spoil the replica."""
    machine = EpochMachine()
    machine.begin(rounds=0, dies=False)
    world = machine.world
    while not world.primary.welcomed:
        machine.run(1)
    for cell in range(CELLS):
        machine.guest_works(cell, True)
    while world.primary.to_seed:
        world.primary.seed_one()
    machine.cut_connection(agent_gets, primary_gets=agent_gets // 2)
    assert world.primary.session.captured == 0
    machine.settle()
    assert world.primary.state is PrimaryState.PROTECTED and world.terms == [1]


def test_nothing_is_cut_while_the_agent_is_away_in_the_initial_copy() -> None:
    """Output would be held for a backup that is not there."""
    machine = EpochMachine()
    machine.begin(rounds=0, dies=False)
    world = machine.world
    while not world.primary.seeded:
        machine.run(1)
    machine.cut_connection(agent_gets=0, primary_gets=0)
    world.primary.hear()
    assert world.primary.session.away and world.primary.session.next_epoch() is None
    machine.settle()
    assert world.primary.state is PrimaryState.PROTECTED and world.terms == [1]


def test_a_resume_that_overtakes_the_first_epoch_goes_on() -> None:
    """The agent's old thread completes the replica that the primary was told is incomplete: it is the same session."""
    machine = EpochMachine()
    machine.begin(rounds=0, dies=False)
    world = machine.world
    while not world.primary.session.captured:
        machine.run(1)
    while world.primary.to_ship:
        world.primary.ship_one()
    world.primary.line.connection.break_off(agent_gets=99, primary_gets=0)
    world.primary.hear()
    world.primary.reconnect()
    world.agent.accept()
    world.agent.greet()
    world.primary.hear()
    assert not world.primary.gate.passing
    machine.settle()
    assert world.primary.state is PrimaryState.PROTECTED and world.terms == [1]


def test_unprotect_ends_with_a_free_primary_and_a_backup_that_cannot_take_over() -> None:
    machine = protected()
    machine.operator(unprotect=True)
    machine.settle()
    assert machine.world.primary.gate.passing and machine.world.agent.standby.promotable() is not None


def test_a_dead_agent_means_a_silent_primary() -> None:
    machine = protected()
    machine.agent_crashes_or_starts()
    said = machine.world.spoken
    for _ in range(5):
        machine.run(1)
    assert machine.world.primary.gate.held and machine.world.spoken <= said + 4
