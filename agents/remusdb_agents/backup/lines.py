# SPDX-License-Identifier: Apache-2.0
"""The connections of one VM's primary, by the numbers that the core knows them by."""

from __future__ import annotations

import itertools
import threading

from remusdb.transport.stream import FrameStream

NONE = 0  # no connection's number


class Lines:
    """Any thread may ask."""

    def __init__(self) -> None:
        self._next = itertools.count(NONE + 1)
        self._lock = threading.Lock()
        self._numbers: dict[FrameStream, int] = {}
        self._streams: dict[int, FrameStream] = {}

    def enter(self, stream: FrameStream) -> int:
        """Its number, a new one."""
        with self._lock:
            number = self._numbers[stream] = next(self._next)
            self._streams[number] = stream
            return number

    def leave(self, stream: FrameStream) -> None:
        """Nothing more comes over it, and nothing is sent any more."""
        with self._lock:
            self._streams.pop(self._numbers.pop(stream, NONE), None)

    def number(self, stream: FrameStream) -> int:
        """`NONE` for one that left."""
        return self._numbers.get(stream, NONE)

    def stream(self, number: int) -> FrameStream | None:
        """None for one that left."""
        return self._streams.get(number)
