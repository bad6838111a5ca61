# SPDX-License-Identifier: Apache-2.0
"""Breaks one TCP connection of a guest in its client's name, then has the client learn of it. No socket, no clock.

    asking ─the guest answers with RST: its socket is gone▶ telling ─TELL_AT_S▶ done
      └ RST at the sequence number that the guest expects; asked for, again and again, by a byte that it has already

Invariant: `shut` is true until the guest's socket is gone; whoever drives this drops all that the guest sends in this
connection for as long. A guest that does not answer is asked on, ever more rarely: it may stand still for long.

The question is a segment with one byte from before the guest's window. A socket that lives answers it at once with
what it expects (RFC 9293, 3.10.7.4; Linux limits the rate of such answers only where there is no data), and a kernel
without such a socket with RST. So one question tells both, and a RST at any other number than the one that is expected,
which RFC 5961 would have answered with a challenge, is never needed twice.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from remusdb.core.segments import ACK, RST, End, Segment, build

FIRST_S, MOST_S = 0.01, 1.0  # between two questions; it doubles
ANSWER_S = 0.005  # a guest that answers the same again is reset again no more often
TELL_AT_S = (0.0, 0.2, 1.0, 3.0)  # the network may still be moving, as in net/announce.py
_NUMBERS = 1 << 32


class Way(enum.Enum):
    """Where a frame is to go."""

    GUEST = "guest"
    NETWORK = "network"


@dataclass(frozen=True)
class Out:
    """A frame to be sent."""

    way: Way
    frame: bytes


@dataclass(frozen=True)
class Target:
    """The connection. `sent`: the guest's next sequence number, `acked`: the last one that it acknowledged."""

    guest: End
    client: End
    vlan: int | None
    sent: int
    acked: int


class Reset:
    """Of one connection. Times are of one monotonic clock, in seconds."""

    def __init__(self, target: Target, now: float) -> None:
        self.target = target
        self.shut = True
        self.done = False
        self.due_at = now  # call `due` then
        self._expected = target.acked
        self._wait_s = FIRST_S
        self._answered_at = -1.0
        self._gone_at = 0.0
        self._told = 0

    def is_of(self, segment: Segment) -> bool:
        """Whether the guest sent this in the connection."""
        guest, client = self.target.guest, self.target.client
        ends = (segment.source, segment.source_port, segment.target, segment.target_port)
        return ends == (guest.address, guest.port, client.address, client.port)

    def due(self, now: float) -> list[Out]:
        """What is to be sent now that `due_at` has come."""
        if self.done or now < self.due_at:
            return []
        if not self.shut:
            return self._tell(now)
        self.due_at, self._wait_s = now + self._wait_s, min(2 * self._wait_s, MOST_S)
        return self._reset_and_ask()

    def heard(self, segment: Segment, now: float) -> list[Out]:
        """The guest sent this in the connection, and it was dropped."""
        if not self.shut:
            return []
        if segment.flags & RST:
            self.shut = False
            self._gone_at = self.due_at = now
            return []
        if not segment.flags & ACK:
            return []
        if segment.ack == self._expected and now - self._answered_at < ANSWER_S:
            return []
        self._expected, self._answered_at = segment.ack, now
        return self._reset_and_ask()

    def _reset_and_ask(self) -> list[Out]:
        # The question's byte must lie before what the guest expects, also if it has just taken more.
        before = (self.target.acked - 1) % _NUMBERS
        return [
            self._as_client(self._expected, self.target.sent, RST | ACK),
            self._as_client(before, self.target.sent, ACK, b"\0"),
        ]

    def _tell(self, now: float) -> list[Out]:
        """A client that waits sends nothing, and would never learn. Two ways to have the guest's kernel send it a RST:

        a segment of the client's to the guest, whose answer is right for a client that has all of the guest's bytes and
        no more; a keep-alive in the guest's name, whose answer tells the guest's kernel what number is right.
        """
        self._told += 1
        self.done = self._told == len(TELL_AT_S)
        if not self.done:
            self.due_at = max(now, self._gone_at + TELL_AT_S[self._told])
        target = self.target
        before = (target.sent - 1) % _NUMBERS
        keep_alive = build(target.guest, target.client, target.vlan, before, self._expected, ACK)
        return [self._as_client(self._expected, target.sent, ACK), Out(Way.NETWORK, keep_alive)]

    def _as_client(self, seq: int, ack: int, flags: int, data: bytes = b"") -> Out:
        target = self.target
        return Out(Way.GUEST, build(target.client, target.guest, target.vlan, seq, ack, flags, data))
