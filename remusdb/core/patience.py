# SPDX-License-Identifier: Apache-2.0
"""How long a primary may be silent before it counts as dead, by what its link has shown. No clock: the time comes in.

Owns the longest gap between two signs of life in each of the last seconds. Invariant: the limit is never above what
the operator set, and never below `GAPS` of the longest gap that is remembered or `GAPS` heartbeats: what a primary
did a moment ago, while it lived, is no sign of its death.

    learning ─LEARN_S of one connection▶ adapted: between LEAST_S and the operator's limit
        ▲ the operator's limit holds          │
        └───────── another connection ────────┘
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

GAPS = 3  # so many times the longest gap; as many heartbeats as config.HEARTBEATS_PER_SILENCE
LEAST_S = 0.42  # a link that is gone for 0.3 s, the heartbeat before that and two looks: no dead host
LEARN_S = 5.0  # of a connection, until what it has shown is believed
MEMORY_S = 60  # a gap is remembered for so long


@dataclass
class Patience:
    """One VM's. Times of one monotonic clock, in seconds. `most_s`: what the operator set."""

    most_s: float
    adapts: bool = True
    _heartbeat_s: float = 0.0
    _since: float | None = None  # the first sign of life of this connection
    _last: float = 0.0
    _gaps: deque[tuple[int, float]] = field(default_factory=deque)  # the second, and its longest gap

    def begin(self, heartbeat_s: float) -> None:
        """Another connection, or the first epochs: what that is like is not known.

        `heartbeat_s`: so often, at least, the primary said that it would be heard.
        """
        self._heartbeat_s, self._since = heartbeat_s, None

    def heard(self, at: float) -> None:
        """A sign of life then. The same may be told again; signs in between that are not told make a gap longer."""
        if self._since is None:
            self._since = self._last = at
        if at <= self._last:
            return
        gap, self._last, second = at - self._last, at, int(at)
        if self._gaps and self._gaps[-1][0] == second:
            self._gaps[-1] = (second, max(gap, self._gaps[-1][1]))
        else:
            self._gaps.append((second, gap))
        while self._gaps[0][0] < second - MEMORY_S:
            self._gaps.popleft()

    def limit_s(self) -> float:
        """So long it may be silent, from its last sign of life."""
        if not self.adapts or self._since is None or self._last - self._since < LEARN_S:
            return self.most_s
        longest = max(gap for _second, gap in self._gaps)
        return min(self.most_s, max(LEAST_S, GAPS * longest, GAPS * self._heartbeat_s))
