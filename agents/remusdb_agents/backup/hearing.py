# SPDX-License-Identifier: Apache-2.0
"""When a VM's primary was last heard, and over which connection: what silence is judged by.

Written in a turn of the VM's desk, or by the one thread that reads the connection; read by any, which waits for nobody.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from remusdb.transport.stream import FrameStream


class Hearing:
    """One VM's. Times are time.monotonic()."""

    def __init__(self) -> None:
        self.stream: FrameStream | None = None  # the connection that feeds the standby
        self._last_heard = time.monotonic()
        self._reading = True
        self._reading_again_at = 0.0  # until then nothing was read of the primary: it was not silent

    def follow(self, stream: FrameStream) -> None:
        """This connection feeds the standby from now on."""
        self._last_heard = time.monotonic()
        self.stream = stream

    def leave(self) -> None:
        """It does no more."""
        if self.stream is not None:
            self._last_heard = self.stream.last_heard  # first, for whoever reads meanwhile
            self.stream = None

    @contextmanager
    def not_reading(self) -> Iterator[None]:
        """Nothing is read of the primary meanwhile."""
        self._reading = False
        try:
            yield
        finally:
            self._reading_again_at, self._reading = time.monotonic(), True

    def excused(self) -> bool:
        """Whether a silence has another cause: the connection was lost, and is made again; or what came is unread."""
        stream = self.stream
        return stream is None or stream.unread

    def heard(self) -> float:
        """The primary's last sign of life."""
        if not self._reading:
            return time.monotonic()
        stream = self.stream
        return max(stream.last_heard if stream is not None else self._last_heard, self._reading_again_at)
