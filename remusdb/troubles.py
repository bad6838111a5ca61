# SPDX-License-Identifier: Apache-2.0
"""What is wrong while a VM is protected all the same: told once when it begins, once when it is over, and in status.

Invariant: for each trouble that is told, its end is told, unless the session ends first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

from remusdb.reasons import Reason

RunTrouble = Literal["suspended", "io-error", "stopped"]
Trouble = RunTrouble | Literal["output-dropped", "arbiter"]
Tell = Callable[[Literal["trouble", "cleared"], Trouble, Reason], None]


class Troubles:
    """The troubles of one session, or of one replica. Any thread may speak."""

    def __init__(self, tell: Tell) -> None:
        """`tell` the history: that a trouble began, or ended."""
        self._tell = tell
        self._lock = threading.Lock()
        self._now: dict[Trouble, Reason] = {}

    def say(self, what: Trouble, why: Reason) -> None:
        """It is so, with why; an event only the first time."""
        with self._lock:
            new, self._now[what] = what not in self._now, why
            if new:
                self._tell("trouble", what, why)

    def clear(self, what: Trouble, why: Reason) -> None:
        """It is so no longer."""
        with self._lock:
            if self._now.pop(what, None) is not None:
                self._tell("cleared", what, why)

    @property
    def names(self) -> list[Trouble]:
        """Of what is wrong now."""
        return list(self._now)

    @property
    def reasons(self) -> list[Reason]:
        """What is wrong now."""
        return list(self._now.values())
