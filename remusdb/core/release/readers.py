# SPDX-License-Identifier: Apache-2.0
"""What tells whether bytes of a server belong to an open transaction: one small interface, three that have it."""

from __future__ import annotations

from typing import Protocol


class Reader(Protocol):
    """Of one connection, the server's side of it, in order and without gaps."""

    @property
    def open(self) -> bool:
        """Whether a transaction is open, for certain, after all that was read."""

    def read(self, payload: bytes, dscp: int) -> bool:
        """What a frame carries next; whether all of it is of a transaction that was open before and is after it.

        An empty payload (an acknowledgement) is, where a transaction is open.
        """


class MarkReader:
    """Takes the word of the server itself: packets with this DSCP value are of an open transaction.

    The first of them opens it and waits, so no cut before that one is committed misses the connection.
    """

    def __init__(self, mark: int) -> None:
        self.open = False
        self._mark = mark

    def read(self, payload: bytes, dscp: int) -> bool:
        """See Reader."""
        before, self.open = self.open, dscp == self._mark
        return before and self.open
