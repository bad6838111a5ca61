# SPDX-License-Identifier: Apache-2.0
"""What a PostgreSQL server says (protocol 3.0 and 3.2, plain), read for the state of its transaction.

    greeting ──R, E, v──▶ closed ──ReadyForQuery: T──▶ open ──what may end a transaction─▶ closed
        └── anything else, or what does not parse, at any time ──▶ lost, for good

Open is what ReadyForQuery said last, as long as nothing followed that may end a transaction: only a CommandComplete
whose tag is on the list is known not to. So COMMIT AND CHAIN, which answers with "in a transaction" as what came before
it did, closes by its tag, as a COMMIT in a pipeline does, until the next ReadyForQuery. An error closes, too: a COMMIT
that fails answers with nothing else. A procedure cannot commit inside of a transaction block ("invalid transaction
termination"), but its tag is not on the list either. Formats: the manual's "Message Formats".
"""

from __future__ import annotations

import struct

from remusdb.core.release.skip import skip_messages

_HEADER = struct.Struct("!BI")
_LENGTH_MAX = 1 << 30  # MaxAllocSize of the server
_TAG_MAX = 64  # COMPLETION_TAG_BUFSIZE of the server
# Of a COPY or a result, or that something was parsed, bound, closed or described.
_HARMLESS = frozenset(b"DTtn123sIGHdc")
_COMPLETE, _READY = ord("C"), ord("Z")
_FIRST = frozenset(b"REv")
# An error; a notice and a setting, which a COMMIT may send before its tag; what a fastpath function answers; what comes
# outside of transactions.
_CLOSES = frozenset(b"ENSVARKv")
# Server's cmdtaglist.h: those that neither end nor begin a transaction.
_TAGS = frozenset(
    tag.encode()
    for tag in (
        *("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "FETCH", "MOVE", "EXPLAIN"),
        *("DECLARE CURSOR", "CLOSE CURSOR", "CLOSE CURSOR ALL", "SAVEPOINT", "RELEASE", "LOCK TABLE", "SHOW", "SET"),
        *("RESET", "SET CONSTRAINTS", "PREPARE", "DEALLOCATE", "DEALLOCATE ALL", "ANALYZE", "TRUNCATE TABLE"),
        *("CREATE TABLE", "CREATE TABLE AS", "SELECT INTO", "CREATE INDEX", "ALTER TABLE", "DROP TABLE", "DROP INDEX"),
        *("CREATE VIEW", "DROP VIEW", "CREATE SEQUENCE", "REFRESH MATERIALIZED VIEW", "NOTIFY"),
    )
)


class PostgresReader:
    """Of one connection, from its first byte. Keeps less than a hundred bytes."""

    def __init__(self) -> None:
        self.open = False
        self.lost = False
        self._greeted = False
        self._rest = b""  # of a message that is not read whole: its header, or what its state depends on
        self._skip = 0  # bytes of a message that say nothing of the transaction, still to come

    def read(self, payload: bytes, dscp: int) -> bool:
        """See Reader."""
        if self.lost or not payload:
            return self.open
        before = self.open
        inside = self._walk(self._rest + payload if self._rest else payload)
        return before and inside and self.open

    def _walk(self, data: bytes) -> bool:
        """Read on; False where anything was there that may end a transaction, whatever came after it."""
        inside = True
        at, end, unpack = self._skip, len(data), _HEADER.unpack_from
        self._rest, self._skip = b"", 0
        if not self._greeted:
            while at < end and data[at] == ord("N"):  # no TLS, no GSSAPI: a byte alone
                at += 1
            if at == end:
                return False
            if data[at] not in _FIRST:  # S, G: encrypted from here on
                return self._lose()
            self._greeted = True
        while True:
            at = skip_messages(data, at)
            if end - at < 5:
                break
            kind, length = unpack(data, at)
            if not 4 <= length <= _LENGTH_MAX:
                return self._lose()
            after = at + 1 + length
            if kind in _HARMLESS:
                at = after
                continue
            if kind in (_READY, _COMPLETE):
                if length > _TAG_MAX + 4:
                    return self._lose()
                if after > end:
                    break  # what it says is not here yet
                inside = self._state(kind, data[at + 5 : after]) and inside
                if self.lost:
                    return False
            elif kind in _CLOSES:
                self.open = inside = False
            else:
                return self._lose()
            at = after
        if at >= end:
            self._skip = at - end
            return inside
        self._rest = data[at:]
        return inside and self._rest[0] in _HARMLESS

    def _state(self, kind: int, body: bytes) -> bool:
        if kind == _COMPLETE:
            tag = body.rstrip(b"\0").rstrip(b"0123456789 ")
            self.open = self.open and tag in _TAGS
            return self.open
        if body not in (b"I", b"T", b"E"):
            return self._lose()
        before = self.open
        self.open = body == b"T"
        return before and self.open

    def _lose(self) -> bool:
        self.lost, self.open, self._rest = True, False, b""
        return False
