# SPDX-License-Identifier: Apache-2.0
"""The whole life of one VM on two or three hosts, with and without an arbiter, under schedules that hypothesis finds.

What must hold, asserted in `world`, `hosts` and `backup_host` where it would break:
  - one VM at most speaks freely; a VM that was replaced says nothing that the one which replaced it does not know,
  - whoever starts the VM, or goes on with it, knows everything that clients were ever told,
  - a replica that becomes the VM is exactly one epoch that was cut, memory and devices,
  - terms of a host are durable and only grow; nothing is acknowledged, released or renounced but on what is durable,
  - between two correct sides no frame is a protocol error, and what is sent again after a cut is applied once;
and when faults end, with no more than what `status` would tell an operator to do, the VM is protected again: no
schedule leaves everybody waiting, or the VM destroyed on all hosts. From there it outlives the end of one host.

How many schedules each case tries: tests/model/schedule.py.
"""

from __future__ import annotations

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.model.schedule import SCHEDULES, check, protected

NUMBER = st.integers(0, (1 << 20) - 1)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("arbiter", [False, True])
@pytest.mark.parametrize("names", ["ab", "abc"])
def test_one_speaks_knows_all_and_is_protected_again(names: str, arbiter: bool) -> None:
    @settings(max_examples=SCHEDULES, derandomize=True, database=None)
    @given(rounds=st.integers(0, 3), numbers=st.lists(NUMBER, max_size=120))
    def every_schedule(rounds: int, numbers: list[int]) -> None:
        run = check(protected(names, rounds) + numbers, names, arbiter)
        event(f"the VM ran {run.world.starts} times")

    every_schedule()
