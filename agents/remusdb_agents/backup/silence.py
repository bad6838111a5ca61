# SPDX-License-Identifier: Apache-2.0
"""When a primary counts as silent. Pure: the clock comes in; for how long is core/patience.py's.

A late look must not become a verdict: if this process did not run for a while (a stopped or starved agent), the
bytes that would have proved the primary alive may still wait in the socket. After such a gap the silence is
counted again.
"""

from __future__ import annotations

from dataclasses import dataclass

LATE_LOOK_S = 0.15


@dataclass
class SilenceWatch:
    """Looks at the time of the last sign of life, some 20 ms apart."""

    _looked: float | None = None
    _not_before: float = 0.0

    def look(self, now: float, last_heard: float, limit_s: float) -> bool:
        """Whether the primary has been silent for the limit. Times of one monotonic clock, in seconds."""
        if self._looked is not None and now - self._looked > LATE_LOOK_S:
            self._not_before = now
        self._looked = now
        return now - max(last_heard, self._not_before) >= limit_s
