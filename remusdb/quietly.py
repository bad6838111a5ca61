# SPDX-License-Identifier: Apache-2.0
"""The log under a flood: of what one place in the code says again and again, a few lines a second, and how many more.

Whoever connects, refuses or breaks off a thousand times a second would otherwise fill the disk, and make journald drop
the lines that matter. A kind is a line of the source, so their number is that of the log calls in the code, whatever
peers say; a kind in flood silences no other.

    quiet ─some lines within a second▶ flooded: counted ─the second is over▶ the count is said ─▶ quiet

What strangers and peers can cause as often as they like is logged with `extra=NOISY`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from remusdb.errors import NoThread
from remusdb.threads import spawn

WINDOW_S = 1.0
BURST = 100  # lines of one kind in a window: what happens to many VMs at once is told of each
BURST_NOISY = 3
NOISY = {"noisy": True}
KINDS_MAX = 1024  # more than there are log calls in the code and its libraries that are ever in flood together

Kind = tuple[str, int, int]  # file, line, level


@dataclass
class _Window:
    """One kind's present second."""

    until: float
    left: int
    more: int = 0
    last: logging.LogRecord | None = None


class Quiet(logging.Filter):
    """A filter for the handler that writes the log. Thread-safe."""

    def __init__(self, say: Callable[[logging.LogRecord], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`say` writes a record that tells how many were left out; `clock` is in seconds."""
        super().__init__()
        self._say = say
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[Kind, _Window] = {}
        self._waiting = False  # a thread will say the counts

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this record is written. What was left out before may be told first."""
        if record.levelno < logging.INFO:  # whoever asked for it wants all of it
            return True
        kind = (record.pathname, record.lineno, record.levelno)
        with self._lock:
            over = self._take_over(self._clock())
            window = self._windows.get(kind)
            if window is None:
                if len(self._windows) >= KINDS_MAX:
                    return bool(record.levelno >= logging.ERROR)
                burst = BURST_NOISY if record.__dict__.get("noisy") else BURST
                window = self._windows[kind] = _Window(self._clock() + WINDOW_S, burst)
            written = window.left > 0
            if written:
                window.left -= 1
            else:
                window.more, window.last = window.more + 1, record
        self._tell(over)
        if not written:
            self._tell_later()
        return written

    def flush(self) -> None:
        """Say the counts of the kinds whose second is over."""
        with self._lock:
            over = self._take_over(self._clock())
        self._tell(over)

    def _take_over(self, now: float) -> list[_Window]:
        over = [kind for kind, window in self._windows.items() if window.until <= now]
        return [self._windows.pop(kind) for kind in over]

    def _tell(self, over: list[_Window]) -> None:
        for window in over:
            if window.more and window.last is not None:
                self._say(_summary(window.last, window.more))

    def _tell_later(self) -> None:
        """The end of a flood is told, too, with nobody logging any more."""
        with self._lock:
            if self._waiting:
                return
            self._waiting = True
        try:
            spawn(self._tell_soon, name="log-counts")
        except NoThread:  # then the next record tells it
            self._waiting = False

    def _tell_soon(self) -> None:
        time.sleep(WINDOW_S + 0.01)
        self._waiting = False
        self.flush()


def _summary(last: logging.LogRecord, more: int) -> logging.LogRecord:
    """The last record that was left out, with how many there were. Without its traceback: the first had one."""
    record = logging.makeLogRecord(last.__dict__)
    record.msg = f"{last.getMessage()} (the last of {more} like it within a second; the others are not written)"
    record.args, record.exc_info, record.exc_text = None, None, None
    return record
