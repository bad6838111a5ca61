# SPDX-License-Identifier: Apache-2.0
"""The disk write log: what the NBD plugin saw, in order, as records.

    record   kind u8 (Kind), disk u8, reserved u16 (zero), length u32, offset u64, little-endian: 16 bytes;
             then, for WRITE alone, `length` bytes of data
    payload  one zstd frame (level 1) of whole records, its size stated, at most MAX_RAW decompressed

The plugin emits the same layout, so an epoch's log is a slice of its stream. Invariant: a payload never
holds part of a record, so that each can be checked and applied on its own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from remusdb.core.zstdframe import compress, decompress
from remusdb.errors import BadFrame

RECORD: Final = struct.Struct("<BBHIQ")
MAX_RAW = 8 * 1024 * 1024  # bytes of records in one payload, decompressed

_MAX_OFFSET = 1 << 63  # off_t is signed

Buffer = bytes | bytearray | memoryview


class Kind(IntEnum):
    """What the guest did to a range of its disk."""

    WRITE = 1
    ZERO = 2
    TRIM = 3


@dataclass(frozen=True, slots=True)
class Record:
    """One write, zero or trim; `data` is empty but for WRITE."""

    kind: Kind
    disk: int  # index of the disk, in the order both sides agreed on
    offset: int  # bytes
    length: int  # bytes
    data: memoryview


def iter_records(raw: Buffer) -> Iterator[Record]:
    """The records in `raw`. BadFrame at the first that is cut short or makes no sense."""
    view = memoryview(raw).cast("B")
    at = 0
    while at < len(view):
        record = _record_at(view, at)
        yield record
        at += RECORD.size + len(record.data)


def encode_writes(raw: Buffer) -> list[bytes]:
    """Payloads for WRITES frames that together hold the records of `raw`, in order; none for an empty log.

    A WRITE too large for one payload becomes several. BadFrame where `raw` is not whole records.
    """
    return [compress(batch) for batch in _batches(memoryview(raw).cast("B"))]


def decode_writes(payload: Buffer) -> bytes:
    """The records of one payload, to be read with `iter_records`. BadFrame if it is not one bounded zstd frame."""
    return decompress(payload, "a WRITES payload", 1, MAX_RAW)


def _record_at(view: memoryview, at: int) -> Record:
    if at + RECORD.size > len(view):
        raise BadFrame(f"write log cut inside a record header, at byte {at} of {len(view)}")
    kind, disk, reserved, length, offset = RECORD.unpack_from(view, at)
    if kind not in (Kind.WRITE, Kind.ZERO, Kind.TRIM) or reserved:
        raise BadFrame(f"write log: no such record (kind {kind}, reserved {reserved}) at byte {at}")
    if offset + length > _MAX_OFFSET:
        raise BadFrame(f"write log: offset {offset} and length {length} are beyond any disk")
    start = at + RECORD.size
    end = start + (length if kind == Kind.WRITE else 0)
    if end > len(view):
        raise BadFrame(f"write log cut inside the {length} bytes of a write, at byte {at} of {len(view)}")
    return Record(Kind(kind), disk, offset, length, view[start:end])


def _batches(view: memoryview) -> Iterator[Buffer]:
    """Runs of whole records, each within MAX_RAW. They are slices of `view`, save where a record is split."""
    start = end = 0
    for record in iter_records(view):
        after = end + RECORD.size + len(record.data)
        if after - start > MAX_RAW:
            if end > start:
                yield view[start:end]
            start = end
            if after - start > MAX_RAW:
                yield from _split(record)
                start = after
        end = after
    if end > start:
        yield view[start:end]


def _split(record: Record) -> Iterator[bytes]:
    """The WRITE as several that fit a payload each."""
    step = MAX_RAW // 2  # a round size keeps the parts aligned
    for at in range(0, record.length, step):
        part = record.data[at : at + step]
        yield RECORD.pack(record.kind, record.disk, 0, len(part), record.offset + at) + part
