# SPDX-License-Identifier: Apache-2.0
"""The whole life of one VM on two or three hosts, with and without an arbiter, under schedules that hypothesis finds.

What must hold, asserted in `ownership_world` where it would break:
  - one VM at most speaks freely; a VM that was replaced says nothing that the one which replaced it does not know,
  - whoever starts the VM, or goes on with it, knows everything that clients were ever told,
  - terms of a host are durable and only grow; nothing is acknowledged or released in an old one;
and when faults end, with no more than what `status` would tell an operator to do, the VM is protected again: no
schedule leaves everybody waiting, or the VM destroyed on all hosts. From there it outlives the end of one host.

REMUSDB_SCHEDULES in the environment is how many schedules each case tries.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from remusdb.core.ownership import Ownership
from remusdb.core.standby import Refusal, Standby
from tests.model import ownership_takeover
from tests.model.ownership_run import Run
from tests.model.ownership_session import Host
from tests.model.ownership_takeover import Replica

SCHEDULES = int(os.environ.get("REMUSDB_SCHEDULES", "800"))
NUMBER = st.integers(0, (1 << 20) - 1)


def check(numbers: list[int], names: str, arbiter: bool) -> Run:
    """One schedule; then one more failure."""
    run = Run(numbers, names, arbiter)
    try:
        run.run()
        run.fail_once(primary_dies=len(numbers) % 2 == 0)
    except AssertionError as exc:
        raise AssertionError(f"{exc}\n{run}") from exc
    return run


@pytest.mark.timeout(0)
@pytest.mark.parametrize("arbiter", [False, True])
@pytest.mark.parametrize("names", ["ab", "abc"])
def test_one_speaks_knows_all_and_is_protected_again(names: str, arbiter: bool) -> None:
    @settings(max_examples=SCHEDULES, deadline=None, derandomize=True, database=None)
    @given(rounds=st.integers(0, 3), numbers=st.lists(NUMBER, max_size=120))
    def every_schedule(rounds: int, numbers: list[int]) -> None:
        run = check(Run.protected(names, rounds) + numbers, names, arbiter)
        event(f"the VM ran {run.world.starts} times")

    every_schedule()


# --- that the rules above are not true because nothing can break them: each of these mistakes is found ---


def random_schedules(names: str, many: int) -> Any:
    for seed in range(many):
        rng = random.Random(seed)
        yield Run.protected(names, seed % 3) + [rng.randrange(1 << 20) for _ in range(10 << seed % 4)]


def void_claims_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A takeover that the arbiter allowed to a daemon which died is never given back."""
    monkeypatch.setattr(Replica, "settle", lambda self: None)


def every_takeover_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = lambda host, owner, term: lambda now: Ownership(host, term + 1)  # noqa: E731
    monkeypatch.setattr(ownership_takeover, "take_over", rule)


def lost_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A primary that lost its backup speaks."""
    monkeypatch.setattr(Host, "lost", Host.renounced)


def a_takeover_that_died_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Replica.start

    def forget(self: Replica) -> None:
        start(self)
        self.returning = False

    monkeypatch.setattr(Replica, "start", forget)


def a_newer_session_fences_its_own_host(monkeypatch: pytest.MonkeyPatch) -> None:
    hello = Standby.hello

    def fences(self: Standby, primary: str, term: int, resume: bool) -> Any:
        answer = hello(self, primary, term, resume)
        if isinstance(answer, Refusal) and resume and term < self.term and not answer.renounced:
            return Refusal(answer.reason, answer.term, fenced=True)
        return answer

    monkeypatch.setattr(Standby, "hello", fences)


def a_takeover_under_way_fences(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old primary is put away before it is known that the VM can be run here."""
    monkeypatch.setattr(Replica, "undecided", False)


def a_lost_claim_fences(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old primary is put away because of the record alone, whose owner may have failed to run the VM."""
    monkeypatch.setattr(Host, "overruled", Host.fence)


@pytest.mark.parametrize(
    ("mistake", "arbiter"),
    [
        (void_claims_stay, True),
        (every_takeover_is_allowed, True),
        (lost_is_free, False),
        (a_takeover_that_died_is_forgotten, False),
        (a_newer_session_fences_its_own_host, False),
        (a_takeover_under_way_fences, False),
        (a_lost_claim_fences, True),
    ],
)
def test_a_mistake_is_found(
    mistake: Callable[[pytest.MonkeyPatch], None], arbiter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)

    def search() -> None:
        for numbers in random_schedules("ab", 20_000):
            check(numbers, "ab", arbiter)

    with pytest.raises(AssertionError, match=r"^(stuck|what clients|two VMs|a VM that|a replaced VM)"):
        search()
