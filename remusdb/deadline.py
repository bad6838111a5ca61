# SPDX-License-Identifier: Apache-2.0
"""A point in time until which something is waited for, and looking again and again until then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time, by the clock of `time.monotonic()`."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Self:
        """So long from now."""
        return cls(time.monotonic() + seconds)

    @property
    def over(self) -> bool:
        """Whether it has come."""
        return time.monotonic() >= self.at

    def left(self) -> float:
        """Seconds until then; 0 once it is over."""
        return max(0.0, self.at - time.monotonic())

    def timeout_s(self) -> float:
        """Seconds until then, for a socket's timeout, of which 0 means another thing. TimeoutError once it is over."""
        if (left := self.left()) <= 0:
            raise TimeoutError("timed out")
        return left


def poll_until(look: Callable[[], Found], deadline: Deadline, every_s: float) -> Found:
    """What `look` finds, asked every so often until it is true; what it found last, untrue, once the time is over.

    It is asked at least once, and once more when the time is over.
    """
    while not (found := look()) and not deadline.over:
        time.sleep(min(every_s, deadline.left()))
    return found
