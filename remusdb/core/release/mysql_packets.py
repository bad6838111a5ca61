# SPDX-License-Identifier: Apache-2.0
"""What single packets of a MySQL or MariaDB server say, without their headers.

Each takes the packet's first bytes (`PREFIX_BYTES` at most) and its size, and answers None for what does not parse.
"""

from __future__ import annotations

from typing import NamedTuple

OK, INFILE, EOF, ERR = 0x00, 0xFB, 0xFE, 0xFF
PREFIX_BYTES = 512  # an OK with its text is shorter, or says nothing
COLUMNS_MAX = 4096  # of a table, and of a result (MAX_FIELDS of both servers)
EOF_BYTES = 5
IN_TRANSACTION, MORE, CURSOR, OUT_PARAMETERS, SESSION_CHANGED = 0x0001, 0x0008, 0x0040, 0x1000, 0x4000
_COMPRESS, _COMPRESS_ZSTD = 0x20, 0x04  # in the first and the last byte of the flags
_PREPARED_BYTES = 12
_INTEGERS = {0xFC: 2, 0xFD: 3, 0xFE: 8}
_ZSTD = b"\x28\xb5\x2f\xfd"


class Status(NamedTuple):
    """Of an OK or an EOF: its flags; and whether `certain`: no procedure and no end of a transaction gave it."""

    flags: int
    certain: bool

    @property
    def open(self) -> bool:
        """In a transaction."""
        return bool(self.flags & IN_TRANSACTION)


def offers_compression(packet: bytes) -> bool | None:
    """Of the server's greeting: whether a client may choose compression."""
    end = packet.find(b"\0", 1)
    if packet[:1] != b"\x0a" or end < 0 or len(packet) < end + 21:
        return None
    return bool(packet[end + 14] & _COMPRESS or packet[end + 20] & _COMPRESS_ZSTD)


def compressed(packet: bytes, size: int) -> bool:
    """Whether the first answer of a command can be a compressed packet whose header was read as a plain one's.

    It can if it goes on with the size that it has unpacked, and then with zlib's or Zstandard's first bytes; or with a
    size of 0 and a plain packet, which has number 1. docs/decisions/0034-what-the-servers-side-tells.md
    """
    if len(packet) < 3:
        # Too short for that: then the rest of a compressed packet of so many bytes is no zlib, Zstandard or packet.
        return False
    if packet[:3] == b"\0\0\0":
        return len(packet) < 7 or packet[6] == 1
    inner = packet[3:]
    zlib = len(inner) > 1 and inner[0] & 0x0F == 8 and (inner[0] << 8 | inner[1]) % 31 == 0
    return size > 8 and (zlib or inner[:4] == _ZSTD)


def integer(packet: bytes, at: int) -> tuple[int, int] | None:
    """A length-encoded integer, and where it ends."""
    if at >= len(packet):
        return None
    first = packet[at]
    if first < 0xFB:
        return first, at + 1
    after = at + 1 + _INTEGERS.get(first, len(packet))
    if after > len(packet):
        return None
    return int.from_bytes(packet[at + 1 : after], "little"), after


def column_count(packet: bytes, size: int) -> int | None:
    """Of the packet that begins a result set. One with more in it (metadata that are left out) is not understood."""
    found = integer(packet, 0)
    if found is None or found[1] != size or not 0 < found[0] <= COLUMNS_MAX:
        return None
    return found[0]


def prepared(packet: bytes, size: int) -> int | None:
    """Packets with parameters and columns that may follow, if this can be the OK of a prepared statement; else None."""
    if size != _PREPARED_BYTES or packet[9]:
        return None
    return int.from_bytes(packet[5:7], "little") + int.from_bytes(packet[7:9], "little")


def status_of_ok(packet: bytes, size: int) -> Status | None:
    """Of an OK: also of one that stands for an EOF.

    `certain` needs changed rows, and a last insert id or a text: the OK of CALL never has these. What tells of the
    session's state instead says nothing certain.
    """
    if (rows := integer(packet, 1)) is None or (last_id := integer(packet, rows[1])) is None:
        return None
    at = last_id[1]
    if len(packet) < at + 4:
        return None
    flags = int.from_bytes(packet[at : at + 2], "little")
    text = packet[at + 4 :]
    worded = len(text) > 1 and text[0] == len(text) - 1 < 0xFB and len(packet) == size
    told = last_id[0] > 0 or worded
    return Status(flags, rows[0] > 0 and told and not flags & (SESSION_CHANGED | MORE | OUT_PARAMETERS | CURSOR))


def status_of_end(packet: bytes, size: int, *, eof: bool) -> Status | None:
    """Of the packet that ends a result set, as an EOF of the old form or as an OK."""
    if eof or size == EOF_BYTES:
        if size != EOF_BYTES or not eof:
            return None
        flags = int.from_bytes(packet[3:5], "little")
    elif (found := status_of_ok(packet, size)) is None:
        return None
    else:
        flags = found.flags
    return Status(flags, not flags & (SESSION_CHANGED | MORE | OUT_PARAMETERS | CURSOR))
