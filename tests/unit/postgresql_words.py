# SPDX-License-Identifier: Apache-2.0
"""What a PostgreSQL server says, word by word, for the tests of commit protection."""

from __future__ import annotations

import struct


def message(kind: str, body: bytes = b"") -> bytes:
    """One of PostgreSQL's protocol."""
    return kind.encode() + struct.pack("!I", 4 + len(body)) + body


def complete(tag: str) -> bytes:
    """CommandComplete."""
    return message("C", tag.encode() + b"\0")


def ready(state: str) -> bytes:
    """ReadyForQuery."""
    return message("Z", state.encode())


GREETING = message("R", bytes(4)) + message("S", b"a\0b\0") + message("K", bytes(8)) + ready("I")
BEGIN, COMMIT = complete("BEGIN") + ready("T"), complete("COMMIT") + ready("I")
CHAIN = complete("COMMIT") + ready("T")
UPDATE = complete("UPDATE 1") + ready("T")
ROWS = message("T", bytes(30)) + message("D", bytes(40)) * 3 + complete("SELECT 3") + ready("T")
ALONE = message("T", bytes(30)) + message("D", bytes(40)) + complete("SELECT 1") + ready("I")
FAILED = message("E", b"SERROR\0\0") + ready("E")
