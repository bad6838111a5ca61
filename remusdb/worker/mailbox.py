# SPDX-License-Identifier: Apache-2.0
"""The events of one session, worked off by one thread in the order in which they came; and its timers.

Any thread may post. Only the thread that takes the events sets timers: a timer that is due is an event.
"""

from __future__ import annotations

import queue
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from remusdb.core.primary_events import Event, TimeIsUp, Timer


@dataclass(frozen=True)
class Letter:
    """An event, and who waits until it was worked off."""

    event: Event
    done: Future[None] | None = field(default=None, compare=False)


class Mailbox:
    """Of one session."""

    def __init__(self) -> None:
        self._letters: queue.SimpleQueue[Letter] = queue.SimpleQueue()
        self._due: dict[Timer, float] = {}  # time.monotonic()

    def post(self, event: Event) -> None:
        """Have it worked off some time. Waits for nobody."""
        self._letters.put(Letter(event))

    def send(self, event: Event) -> Future[None]:
        """Have it worked off: done then, with the error of what failed."""
        letter = Letter(event, Future())
        self._letters.put(letter)
        assert letter.done is not None
        return letter.done

    def set_timer(self, timer: Timer, seconds: float) -> None:
        """`TimeIsUp(timer)` comes then; what this timer was set to before does not."""
        self._due[timer] = time.monotonic() + seconds

    def take(self) -> Letter:
        """The next event, waited for. A timer that is due comes before what waits."""
        while True:
            timer, due = min(self._due.items(), key=lambda item: item[1], default=(None, 0.0))
            try:
                if timer is None:
                    return self._letters.get()
                left = due - time.monotonic()
                if left > 0:
                    return self._letters.get(timeout=left)
            except queue.Empty:
                pass
            if timer is not None:
                del self._due[timer]
                return Letter(TimeIsUp(timer))
