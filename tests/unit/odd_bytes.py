# SPDX-License-Identifier: Apache-2.0
"""Bytes that no parser may stumble over."""

from __future__ import annotations

DEEP = b"[" * 100_000 + b"]" * 100_000
LINES = {
    "not UTF-8": b'{"op": "\xff"}',
    "not UTF-8 as a key": b'{"\xff": 1}',
    "half a surrogate": b'{"op": "\\ud800"}',
    "deep": b'{"args": ' + DEEP + b"}",
    "a list": b"[]",
    "null": b"null",
    "empty": b"",
    "NUL": b"\0",
    "a number of 5000 digits": b'{"op": ' + b"1" * 5000 + b"}",
    "a number too large for a float": b'{"op": 1e999}',
}
