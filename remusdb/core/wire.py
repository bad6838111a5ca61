# SPDX-License-Identifier: Apache-2.0
"""The frame header: 40 bytes in front of every payload, little-endian.

    offset  0  magic     4 bytes  b'RMDB'
            4  version   u8       PROTOCOL_VERSION; stands before everything that a later version may change
            5  type      u8       FrameType, zero is reserved
            6  flags     u16      zero in version 1
            8  length    u32      bytes of payload, at most what its type may have (`payload_limit`)
           12  pad       u32      zero
           16  term      u64      at most TERM_MAX
           24  epoch     u64      at most EPOCH_MAX
           32  checksum  u64      xxh3-64 of the 32 bytes above, then the payload

Invariant: nothing is allocated on a peer's word before its length was checked here, and no payload is
used before its checksum was. Sans-IO: bytes in, values out; `BadFrame` is the one error.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from xxhash import xxh3_64

from remusdb.core.terms import TERM_MAX
from remusdb.errors import BadFrame

MAGIC = b"RMDB"
PROTOCOL_VERSION = 4
MAX_PAYLOAD = 16 * 1024 * 1024  # bytes
HEADER_BYTES = 40
EPOCH_MAX = 1 << 62

_FIELDS = struct.Struct("<4sBBHIIQQ")  # all but the checksum
_CHECKSUM = struct.Struct("<Q")


class FrameType(IntEnum):
    """What a frame carries; the order of use is in docs/architecture.md."""

    HELLO = 1
    WELCOME = 2
    REFUSE = 3
    PAGES = 4
    WRITES = 5
    DEVICES = 6
    COMMIT = 7
    ACK = 8
    HEARTBEAT = 9
    BYE = 10
    RENOUNCE = 11
    PROBE = 12
    BASE = 13
    TAKEOVER = 14
    DECLINE = 15
    ASK = 16
    STANDING = 17
    TAKEN = 18
    PROOF = 19


BULK: Final = (FrameType.PAGES, FrameType.WRITES, FrameType.DEVICES)  # what an epoch consists of


# What may come from whom, and when. The order within a session is the receiver's to judge.
OPENINGS = frozenset({FrameType.HELLO, FrameType.PROBE, FrameType.ASK})  # the primary's first frame
ANSWERS = frozenset({FrameType.HEARTBEAT, FrameType.WELCOME, FrameType.REFUSE})  # the agent's, to HELLO
FROM_PRIMARY = frozenset(
    {FrameType.PAGES, FrameType.WRITES, FrameType.DEVICES, FrameType.COMMIT, FrameType.HEARTBEAT}
    | {FrameType.BYE, FrameType.TAKEOVER}
)
FROM_AGENT = frozenset(
    {FrameType.ACK, FrameType.TAKEN, FrameType.HEARTBEAT, FrameType.REFUSE, FrameType.RENOUNCE}
    | {FrameType.BASE, FrameType.PROOF, FrameType.DECLINE}
)

_SMALL = 1024  # of frames whose payload is empty, or a few numbers
# Types that are not here may have MAX_PAYLOAD: the bulk of an epoch, and words, which are cut once they are here.
_LIMITS = {
    FrameType.HELLO: 1 << 20,  # messages.XML_MAX_BYTES of XML, and 0.4 MiB of names
    FrameType.PROBE: 1 << 20,
    FrameType.WELCOME: 16 << 10,
    FrameType.COMMIT: 128 << 10,  # messages.ADDRESSES_MAX of the guest's addresses, messages.FLOWS_MAX_BYTES of flows
    FrameType.BASE: 64 << 10,  # the agent sends 16 KiB of hashes at a time
    FrameType.ASK: 4 << 10,
    FrameType.STANDING: 64 << 10,
    FrameType.ACK: _SMALL,
    FrameType.HEARTBEAT: _SMALL,
    FrameType.TAKEN: _SMALL,
}


def payload_limit(type: FrameType) -> int:
    """The most bytes of payload that a frame of this type may have."""
    return _LIMITS.get(type, MAX_PAYLOAD)


@dataclass(frozen=True)
class Frame:
    """One frame whose checksum held."""

    type: FrameType
    term: int
    epoch: int
    payload: bytes | memoryview


@dataclass(frozen=True)
class Header:
    """A header that makes sense on its own; `check_payload` decides whether it is the payload's."""

    type: FrameType
    length: int  # bytes of payload
    term: int
    epoch: int
    checksum: int
    fields: bytes  # the bytes under the checksum


def encode_header(type: FrameType, term: int, epoch: int, payload: bytes | memoryview) -> bytes:
    """The 40 bytes that go before `payload`.

    ValueError for a payload over the limit, or a term or epoch out of range: that is a bug of the caller.
    """
    length = memoryview(payload).nbytes
    if length > payload_limit(type):
        raise ValueError(f"a payload of {length} bytes is over the limit of {payload_limit(type)} for {type.name}")
    if not 0 <= term <= TERM_MAX or not 0 <= epoch <= EPOCH_MAX:
        raise ValueError(f"term {term} or epoch {epoch} is out of range")
    fields = _FIELDS.pack(MAGIC, PROTOCOL_VERSION, type, 0, length, 0, term, epoch)
    return fields + _CHECKSUM.pack(_checksum(fields, payload))


def decode_header(
    data: bytes | bytearray | memoryview, allowed: Collection[FrameType] = frozenset(FrameType)
) -> Header:
    """The header in `data`, which must be HEADER_BYTES long. BadFrame says what is wrong with it.

    `allowed`: the types that may come here and now.
    """
    if len(data) != HEADER_BYTES:
        raise BadFrame(f"truncated header: {len(data)} of {HEADER_BYTES} bytes")
    fields = bytes(data[: _FIELDS.size])
    magic, version, kind, flags, length, pad, term, epoch = _FIELDS.unpack(fields)
    if magic != MAGIC:
        raise BadFrame(f"bad magic {magic!r}: the peer does not speak remusdb's protocol")
    if version != PROTOCOL_VERSION:
        raise BadFrame(
            f"the peer speaks protocol version {version}, this side version {PROTOCOL_VERSION}",
            hint="install the same remusdb on both hosts",
        )
    if flags or pad:
        raise BadFrame(f"reserved bits are set (flags {flags:#x}, pad {pad:#x})")
    type = _frame_type(kind)
    if length > payload_limit(type):
        raise BadFrame(
            f"oversized frame: {length} bytes of payload, the limit for {type.name} is {payload_limit(type)}"
        )
    if type not in allowed:
        raise BadFrame(f"a {type.name} frame where none may come")
    if term > TERM_MAX or epoch > EPOCH_MAX:
        raise BadFrame(f"term {term} or epoch {epoch} of a {type.name} frame is out of range")
    (checksum,) = _CHECKSUM.unpack(data[_FIELDS.size :])
    return Header(type, length, term, epoch, checksum, fields)


def check_payload(header: Header, payload: bytes | bytearray | memoryview) -> None:
    """BadFrame unless `payload` is exactly what `header` was written for."""
    length = memoryview(payload).nbytes
    if length != header.length:
        raise BadFrame(f"truncated payload: {length} of {header.length} bytes")
    if _checksum(header.fields, payload) != header.checksum:
        raise BadFrame(f"checksum mismatch in a {header.type.name} frame of {length} bytes")


def _frame_type(value: int) -> FrameType:
    try:
        return FrameType(value)
    except ValueError:
        raise BadFrame(f"unknown frame type {value}") from None


def _checksum(fields: bytes, payload: bytes | bytearray | memoryview) -> int:
    digest = xxh3_64(fields)
    digest.update(payload)
    return digest.intdigest()
