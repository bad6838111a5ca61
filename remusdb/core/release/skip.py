# SPDX-License-Identifier: Apache-2.0
"""Passing over what says nothing of a transaction, many messages at a time: native/release.c has the same in C."""

from __future__ import annotations

from remusdb import native

_ROW_ENDS = 0xFE  # an end of rows or an error begins with this byte or the next; a row that does is of 16 MiB
_WHOLE = 0xFFFFFF


def skip_rows_slowly(data: bytes, at: int, number: int) -> tuple[int, int]:
    """Pass over the whole rows of a MySQL result from `at` on: where the first other packet begins, and its number."""
    end = len(data)
    while at + 5 <= end:
        size = data[at] | data[at + 1] << 8 | data[at + 2] << 16
        after = at + 4 + size
        if not 0 < size < _WHOLE or after > end or data[at + 3] != number or data[at + 4] >= _ROW_ENDS:
            break
        at, number = after, (number + 1) & 255
    return at, number


def skip_messages_slowly(data: bytes, at: int) -> int:
    """Pass over the whole rows (DataRow, CopyData) of a PostgreSQL answer from `at` on: where another message is."""
    end = len(data)
    while at + 5 <= end and (data[at] == 0x44 or data[at] == 0x64):
        length = int.from_bytes(data[at + 1 : at + 5], "big")
        after = at + 1 + length
        if length < 4 or after > end:
            break
        at = after
    return at


# An old kernels.so may be there, from before these.
skip_rows = getattr(native.kernels, "skip_rows", skip_rows_slowly)
skip_messages = getattr(native.kernels, "skip_messages", skip_messages_slowly)
