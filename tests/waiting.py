# SPDX-License-Identifier: Apache-2.0
"""Tests wait for a condition, with a limit that only a broken product reaches, and never for a time."""

from __future__ import annotations

from collections.abc import Callable

from remusdb.deadline import Deadline, poll_until

LIMIT_S = 20.0
LOOK_S = 0.01


def eventually(what: Callable[[], object], within_s: float = LIMIT_S, otherwise: str = "it did not happen") -> None:
    """Wait until `what` is true. AssertionError, with these words, where it is not within so long."""
    assert poll_until(what, Deadline.after(within_s), LOOK_S), f"{otherwise} within {within_s:g} s"
