# SPDX-License-Identifier: Apache-2.0
"""How long a primary may be silent before it counts as dead, by what its link has shown. No clock: the time comes in.

Owns the longest gap between two signs of life in each of the last seconds, and since when its heartbeat datagrams
come as they should. Invariant: the limit is never above what the operator set, and never below `GAPS` of the longest
gap that is remembered or `GAPS` heartbeats: what a primary did a moment ago, while it lived, is no sign of its death.

    learning ─LEARN_S of one connection▶ adapted: between LEAST_S and the operator's limit
        ▲ the operator's limit holds          │
        └───────── another connection ────────┘
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from remusdb.core.beats import interval_s

GAPS = 3  # so many times the longest gap; as many heartbeats as config.HEARTBEATS_PER_SILENCE
LEAST_S = 0.42  # a link that is gone for 0.3 s, the heartbeat before that and two looks: no dead host
LEAST_DATAGRAMS_S = 0.38  # the same where one comes every 25 ms, whatever TCP does: see decision 0032
CONNECTION_S = 1.0  # so long datagrams stand for a connection that says nothing: TCP's second try comes after 0.7
LEARN_S = 5.0  # of a connection, until what it has shown is believed
MEMORY_S = 60  # a gap is remembered for so long


def sign_of_life(connection_at: float, datagram_at: float) -> float:
    """The last one, of the last bytes over the connection and the last datagram (0: none).

    A worker that beats and cannot send what it cuts keeps its VM for `CONNECTION_S` longer than one that is dead, and
    no longer: with its connection for good gone, nothing of it would ever be committed.
    """
    return max(connection_at, min(datagram_at, connection_at + CONNECTION_S))


@dataclass
class Patience:
    """One VM's. Times of one monotonic clock, in seconds. `most_s`: what the operator set."""

    most_s: float
    adapts: bool = True
    _heartbeat_s: float = 0.0
    _steady_since: float | None = None  # since then no datagram was missed
    _datagram: float = 0.0  # the last one
    _since: float | None = None  # the first sign of life of this connection
    _last: float = 0.0
    _gaps: deque[tuple[int, float]] = field(default_factory=deque)  # the second, and its longest gap

    def begin(self, heartbeat_s: float) -> None:
        """Another connection, or the first epochs: what that is like is not known.

        `heartbeat_s`: so often, at least, the primary said that it would be heard.
        """
        self._heartbeat_s, self._since, self._steady_since = heartbeat_s, None, None

    def datagram(self, at: float) -> None:
        """A datagram came then. The same may be told again."""
        if at <= self._datagram:
            return
        missed, self._datagram = at - self._datagram > GAPS * interval_s(self._heartbeat_s), at
        if missed or self._steady_since is None:
            self._steady_since = at

    @property
    def datagrams(self) -> bool:
        """Whether the primary is heard by datagrams now, as it should be: by no more than its connection otherwise."""
        return self._steady_since is not None and self._last - self._datagram <= GAPS * interval_s(self._heartbeat_s)

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
        return min(self.most_s, max(self._least_s(), GAPS * longest, GAPS * self._heartbeat_s))

    def _least_s(self) -> float:
        steady = self._steady_since is not None and self._datagram - self._steady_since >= LEARN_S
        return LEAST_DATAGRAMS_S if steady and self.datagrams else LEAST_S
