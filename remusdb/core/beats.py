# SPDX-License-Identifier: Apache-2.0
"""Heartbeat datagrams: 64 bytes over UDP, beside the connection, whose TCP may keep a peer waiting after a short cut.

    offset  0  magic    4 bytes  b'RMDH'
            4  version  u8       VERSION
            5  way      u8       Way, zero is reserved
            6  pad      u16      zero
            8  session  u64      made up for one connection: by it the key is found
           16  term     u64      of the VM's session
           24  counter  u64      of this way, from 1 on; grows by each datagram
           32  mac      32 bytes blake2b of the 32 bytes above, under the key that WELCOME brought over TLS

Invariant: what counts as heard was made by the other end of this very connection, in this term, after everything that
was heard before: a datagram that comes again, late, from elsewhere or from another session says nothing. Sans-IO.
Little-endian, as all that goes over the wire.
"""

from __future__ import annotations

import hmac
import struct
from enum import IntEnum
from hashlib import blake2b
from typing import Annotated, Final

import msgspec
from msgspec import Meta

MAGIC: Final = b"RMDH"
VERSION: Final = 1
KEY_BYTES: Final = 32
BYTES: Final = 64
SESSION_MAX: Final = (1 << 63) - 1  # msgspec has no bound of 64 bits
COUNTER_MAX: Final = (1 << 64) - 1
PER_HEARTBEAT: Final = 4  # datagrams for each heartbeat over the connection: see decision 0032
LEAST_INTERVAL_S: Final = 0.01

_FIELDS = struct.Struct("<4sBBHQQQ")


class Offer(msgspec.Struct, frozen=True):
    """By what the datagrams of one connection are known; the agent makes it up, and tells it over that connection. They
    go to its UDP port of the same number."""

    session: Annotated[int, Meta(ge=0, le=SESSION_MAX)]
    key: Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]

    def __repr__(self) -> str:
        """Without the key: this may end up in a log."""
        return f"Offer(session={self.session})"


class Way(IntEnum):
    """Who speaks. It is under the MAC, so that a datagram that is sent back to its sender is none."""

    TO_AGENT = 1
    TO_PRIMARY = 2


def interval_s(heartbeat_s: float) -> float:
    """So often a primary sends a datagram that said it would be heard each `heartbeat_s` seconds."""
    return max(LEAST_INTERVAL_S, heartbeat_s / PER_HEARTBEAT)


def session_of(data: bytes | bytearray | memoryview) -> int | None:
    """Of what session it says it is, before any key is asked for; None for what cannot be a heartbeat."""
    if len(data) != BYTES:
        return None
    magic, version, _way, pad, session, _term, _counter = _FIELDS.unpack_from(data)
    return session if (magic, version, pad) == (MAGIC, VERSION, 0) else None


class Mouth:
    """One end's datagrams of one connection, in their order. For one thread."""

    def __init__(self, way: Way, offer: Offer, term: int) -> None:
        self._way, self._session, self._key, self._term = way, offer.session, offer.key, term
        self._counter = 0

    def next(self) -> bytes | None:
        """One more; None once the numbers are used up, for none may come twice."""
        if self._counter >= COUNTER_MAX:
            return None
        self._counter += 1
        fields = _FIELDS.pack(MAGIC, VERSION, self._way, 0, self._session, self._term, self._counter)
        return fields + _mac(self._key, fields)


class Ear:
    """The other end's datagrams of one connection. For one thread."""

    def __init__(self, way: Way, offer: Offer, term: int) -> None:
        """`way`: that of what is to be heard."""
        self._way, self._session, self._key, self._term = way, offer.session, offer.key, term
        self.newest = 0  # the counter of the last one that was heard

    def take(self, data: bytes | bytearray | memoryview) -> bool:
        """Whether it is a sign of life that is newer than all before."""
        if session_of(data) != self._session:
            return False
        fields = bytes(data[: _FIELDS.size])
        _magic, _version, way, _pad, _session, term, counter = _FIELDS.unpack(fields)
        if way != self._way or term != self._term or counter <= self.newest:
            return False
        if not hmac.compare_digest(_mac(self._key, fields), bytes(data[_FIELDS.size :])):
            return False
        self.newest = counter
        return True


def _mac(key: bytes, fields: bytes) -> bytes:
    return blake2b(fields, key=key, digest_size=BYTES - _FIELDS.size).digest()
