# SPDX-License-Identifier: Apache-2.0
"""The initial sync as the agent takes it: frames of epoch 0, applied as they come, and counted.

Invariant: a frame is applied by one thread, once: whoever is told the count may send the next frame and no other. The
thread of a connection that broke may still have a frame in its hands; `pause` waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from remusdb.core.wire import Frame
from remusdb.errors import RemusError


class TornCopy(RemusError):
    """A frame could not be applied: the replica is neither with it nor without it, and the session must end."""


class Seeding:
    """One VM's initial sync, session by session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0

    def begin(self) -> None:
        """A new session."""
        with self._lock:
            self._taken = 0

    def take(self, frame: Frame, current: Callable[[], bool], apply: Callable[[Frame], None]) -> int | None:
        """Apply a frame; how many are taken now. None when its connection was replaced: `current` said no."""
        with self._lock:
            if not current():
                return None
            try:
                apply(frame)
            except Exception as exc:  # whatever it was: half of the frame may be in the replica
                raise TornCopy(f"the initial sync cannot be applied: {exc}") from exc
            self._taken += 1
            return self._taken

    def pause(self) -> int:
        """With the old connection dropped: how many frames are taken, for good until the next is sent."""
        with self._lock:
            return self._taken
