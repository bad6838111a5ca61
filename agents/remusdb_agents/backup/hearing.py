# SPDX-License-Identifier: Apache-2.0
"""When a VM's primary was last heard, over which connection or by which datagrams: what silence is judged by.

Written in a turn of the VM's desk, or by the one thread that reads the connection; read by any, which waits for nobody.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from remusdb.core.patience import sign_of_life
from remusdb.transport.stream import FrameStream
from remusdb_agents.backup.ears import Voice


class Hearing:
    """One VM's. Times are time.monotonic()."""

    def __init__(self) -> None:
        self.stream: FrameStream | None = None  # the connection that feeds the standby
        self.voice: Voice | None = None  # of the connection that was followed last
        self._last_heard = time.monotonic()
        self._reading = True
        self._reading_again_at = 0.0  # until then nothing was read of the primary: it was not silent

    def follow(self, stream: FrameStream, voice: Voice | None = None) -> None:
        """This connection feeds the standby from now on; its datagrams are heard by `voice`."""
        self._last_heard = time.monotonic()
        self.stream, self.voice = stream, voice

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

    @property
    def datagram_at(self) -> float:
        """When the last heartbeat datagram came; 0: none did."""
        voice = self.voice
        return voice.heard_at if voice is not None else 0.0

    def excused(self, datagrams: bool) -> bool:
        """Whether a silence has another cause: the connection was lost, and is made again; or what came is unread.

        `datagrams`: the primary was heard by these as well, which need no connection.
        """
        stream = self.stream
        return not datagrams if stream is None else stream.unread

    def heard(self) -> float:
        """The primary's last sign of life."""
        if not self._reading:
            return time.monotonic()
        stream = self.stream
        connection_at = stream.last_heard if stream is not None else self._last_heard
        return max(sign_of_life(connection_at, self.datagram_at), self._reading_again_at)
