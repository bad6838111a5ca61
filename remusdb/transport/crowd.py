# SPDX-License-Identifier: Apache-2.0
"""Who may stay, of those who came and have not shown yet who they are: so many of each source, and so many in all.

Whoever is over a bound makes the *oldest* of the source with most members go, never a newcomer for being new: one that
means it is done in a few milliseconds, so it is gone from here before its turn comes, however many others sit there.

Sans-IO: members are whatever the caller keeps; it closes those that it is told.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Iterator
from itertools import count
from typing import Generic, TypeVar

Member = TypeVar("Member", bound=Hashable)

V6_SOURCE_BITS = 64  # one machine has all addresses of its network's /64 to choose from


class Crowd(Generic[Member]):
    """Members by source, each source's oldest first. For one thread."""

    def __init__(self, most_each: int, most: int) -> None:
        """`most_each`: members of one source; `most`: of all sources together."""
        self._most_each = most_each
        self._most = most
        self._numbers = count()
        self._members: dict[str, dict[Member, int]] = {}  # an entry only while it has members
        self._sources: dict[Member, str] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[Member]:
        """The members, oldest first; it may be changed meanwhile."""
        return iter(list(self._sources))

    def enter(self, source: str, member: Member) -> Member | None:
        """Take a newcomer in. Who has to go for it, if somebody has; that one is no member any more."""
        mine = self._members.setdefault(source, {})
        mine[member] = next(self._numbers)
        self._sources[member] = source
        if len(mine) > self._most_each:
            return self._drop(mine)
        return self.shed() if len(self) > self._most else None

    def shed(self) -> Member | None:
        """Let the oldest member go of the source that has most, of several such of the one that came first; None when
        nobody is here."""
        if not self._members:
            return None
        return self._drop(max(self._members.values(), key=lambda mine: (len(mine), -next(iter(mine.values())))))

    def leave(self, member: Member) -> None:
        """It is done, or gone. No error for one that is no member."""
        source = self._sources.pop(member, None)
        if source is not None:
            del self._members[source][member]
            if not self._members[source]:
                del self._members[source]

    def _drop(self, mine: dict[Member, int]) -> Member:
        oldest = next(iter(mine))
        self.leave(oldest)
        return oldest


def source_of(address: str) -> str:
    """What counts as one source: an IPv4 address, also one that is written as IPv6, or a /64 of IPv6."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address  # of another kind of socket
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, V6_SOURCE_BITS), strict=False))
    return str(ip)
