# SPDX-License-Identifier: Apache-2.0
"""Points in time, and looking again until one."""

from __future__ import annotations

import time

import pytest

from remusdb.deadline import Deadline, poll_until

LONG_S = 1000.0


def test_what_is_left_is_never_less_than_nothing() -> None:
    soon, gone = Deadline.after(LONG_S), Deadline(time.monotonic() - 5)
    assert not soon.over and LONG_S - 10 < soon.left() <= LONG_S
    assert gone.over and gone.left() == 0
    assert LONG_S - 10 < soon.timeout_s() <= LONG_S
    with pytest.raises(TimeoutError):  # a socket's timeout of 0 means not to wait, not that the time is over
        gone.timeout_s()


def test_it_is_looked_until_something_is_found_and_no_longer() -> None:
    answers = iter(["", "", "found", "never asked for"])
    assert poll_until(lambda: next(answers), Deadline.after(LONG_S), 0.001) == "found"
    assert next(answers) == "never asked for"


@pytest.mark.parametrize(("time_s", "least"), [(0.0, 1), (-1.0, 1), (0.05, 2)])
def test_without_time_it_is_looked_once_and_with_time_once_more_at_its_end(time_s: float, least: int) -> None:
    looks: list[float] = []
    deadline = Deadline.after(time_s)
    assert poll_until(lambda: looks.append(time.monotonic()), deadline, LONG_S) is None
    assert len(looks) == least, "and it was not slept longer than until then"
    assert looks[-1] >= deadline.at or least == 1
