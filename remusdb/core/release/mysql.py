# SPDX-License-Identifier: Apache-2.0
"""What a MySQL or MariaDB server says (protocol 10, plain), read for the state of its transaction.

    greeting ─▶ login ──OK──▶ between ◀──▶ columns ─▶ rows
        └── what does not parse, TLS, compression, a cursor, at any time ──▶ lost, for good

An answer is judged whole, since only its end tells: it is inside if it is one result set, or an OK that no procedure
can have given, in a transaction before and after, with nothing more to come. In all else a COMMIT may hide: the flags
say "in a transaction" on both sides of COMMIT AND CHAIN, of a START TRANSACTION that commits what was open, and of a
procedure that does both. While an answer has not ended nothing is open.

The client's side is not seen. What it chose is found from what is sent: TLS and compression by headers that contradict,
the old EOF packets by the one behind the columns. docs/decisions/0034-what-the-servers-side-tells.md
"""

from __future__ import annotations

from remusdb.core.release import mysql_packets as packets
from remusdb.core.release.skip import skip_rows

_HEADER_BYTES = 4
_WHOLE = 0xFFFFFF  # a packet of this size goes on in the next one
_LOGIN_MAX = 1 << 14  # the first bytes of TLS read as the header of a packet that is longer
_FOLLOWING_MAX = 200  # packets behind the OK of a prepared statement: numbers begin again at 256
_COLUMN = b"\x03def"


# What comes next; plain numbers, since this is asked for each packet.
_GREETING, _LOGIN, _BETWEEN, _PREPARED, _FILE, _COUNT, _COLUMNS, _ROWS, _GOES_ON, _LOST = range(10)
_ANSWERS = (_BETWEEN, _COUNT, _FILE)
_PLAIN = (_BETWEEN, _COUNT, _COLUMNS, _ROWS)


class MySqlReader:
    """Of one connection, from its first byte. Keeps some 600 bytes at most."""

    def __init__(self) -> None:
        self._at = _GREETING
        self._was = False  # a transaction was open, for certain, when the last answer ended
        self._inside = False  # and all that the payload brought so far is of it
        self._number = 0  # of the next packet
        self._head = b""  # what came of a packet's header
        self._kept = b""  # its first bytes
        self._size = self._rest = 0  # its size; what of it is still to come
        self._compresses = True  # the client may have chosen compression
        self._columns = 0  # that are still to come
        self._eof = False  # an EOF packet was behind the columns, so one will be behind the rows
        self._more = False  # this answer is of several
        self._first = False  # the next packet is right behind the columns

    @property
    def open(self) -> bool:
        """Whether a transaction is open, for certain, after all that was read."""
        return self._was and self._at == _BETWEEN and not self._head

    @property
    def lost(self) -> bool:
        """Nothing can be known of it any more."""
        return self._at == _LOST

    def read(self, payload: bytes, dscp: int) -> bool:
        """See Reader."""
        self._inside = self.open
        at, end = 0, len(payload)
        while at < end and self._at != _LOST:
            if not self._head:
                if self._at == _ROWS:
                    after, self._number = skip_rows(payload, at, self._number)
                    at, self._first = after, self._first and after == at
                if at + _HEADER_BYTES <= end:
                    size = payload[at] | payload[at + 1] << 8 | payload[at + 2] << 16
                    after = at + _HEADER_BYTES + size
                    if 0 < size and after <= end:
                        if payload[at + 3] == self._number and self._at in _PLAIN:
                            self._number = (self._number + 1) & 255
                        else:
                            self._check_number(payload[at + 3], size)
                        if self._at != _LOST:
                            at += _HEADER_BYTES
                            self._packet(payload[at : min(after, at + packets.PREFIX_BYTES)], size)
                        at = after
                        continue
            if at < end:
                at = self._piece(payload, at)
        return self._inside and self.open

    def _piece(self, payload: bytes, at: int) -> int:
        """Read on, from `at`, in a packet that the payload does not hold whole; where that ends."""
        if len(self._head) < _HEADER_BYTES:
            after = at + _HEADER_BYTES - len(self._head)
            self._head += payload[at:after]
            if len(self._head) < _HEADER_BYTES:
                return len(payload)
            at = after
            self._size = self._rest = int.from_bytes(self._head[:3], "little")
            self._check_number(self._head[3], self._size)
        after = min(at + self._rest, len(payload))
        self._kept += payload[at : min(after, at + packets.PREFIX_BYTES - len(self._kept))]
        self._rest -= after - at
        if not self._rest and not self.lost:
            self._packet(self._kept, self._size)
            self._head = self._kept = b""
        return after

    def _lose(self) -> None:
        self._at, self._was, self._inside, self._head, self._kept = _LOST, False, False, b"", b""

    def _check_number(self, number: int, size: int) -> None:
        """Whether a packet of that number and size can come now."""
        fits = number == self._number
        if self._at == _LOGIN:
            fits = (fits or number == self._number + 1) and size <= _LOGIN_MAX
        elif self._at == _PREPARED and number == 1:
            fits, self._at = True, _BETWEEN
        elif self._at == _FILE:
            fits = True
        if not fits or (not size and self._at != _GOES_ON):
            self._lose()
        self._number = (number + 1) % 256

    def _answered(self, status: packets.Status | None) -> None:
        """An answer, or one of several, ended like this; None: with an error, which may have ended the transaction."""
        if status is not None and status.flags & packets.CURSOR:
            self._lose()  # rows without a header will follow, and look like anything
            return
        certain = status is not None and status.certain and not self._more
        self._inside = self._inside and certain and status is not None and status.open
        self._more = status is not None and bool(status.flags & packets.MORE)
        self._was = status is not None and status.open and not self._more
        self._at = _COUNT if self._more else _BETWEEN
        if not self._more:
            self._number = 1

    def _packet(self, packet: bytes, size: int) -> None:
        """A whole packet came."""
        state = self._at
        if state == _COLUMNS:
            self._column(packet, size)
        elif state == _ROWS:
            self._row(packet, size)
        elif state in _ANSWERS:
            self._answer(packet, size)
        elif state == _PREPARED:
            self._columns -= 1
            if self._columns < 0:
                self._lose()
        elif state == _GOES_ON:
            self._at = _GOES_ON if size == _WHOLE else _ROWS
        elif state == _LOGIN:
            self._login(packet, size)
        else:
            offers = packets.offers_compression(packet)
            self._compresses = bool(offers)
            self._at, self._number = _LOGIN, 2
            if offers is None:
                self._lose()

    def _login(self, packet: bytes, size: int) -> None:
        if packet[0] == packets.OK:
            self._at, self._number = _BETWEEN, 1
            if packets.status_of_ok(packet, size) is None:
                self._lose()
        elif packet[0] not in (1, packets.EOF):  # more of the login; another way to log in
            self._lose()

    def _answer(self, packet: bytes, size: int) -> None:
        """The first packet of an answer, or of the next of several."""
        if self._compresses and packets.compressed(packet, size):
            self._lose()
            return
        self._compresses = False
        kind, alone = packet[0], self._at == _FILE
        if kind == packets.ERR:
            self._answered(None)
        elif (
            kind == packets.OK and not alone and not self._more and (left := packets.prepared(packet, size)) is not None
        ):
            self._was = self._inside = False
            self._at, self._columns = _PREPARED, left + 2  # EOF packets
            if left > _FOLLOWING_MAX:
                self._lose()
        elif kind == packets.OK:
            if (status := packets.status_of_ok(packet, size)) is None:
                self._lose()
            else:
                self._answered(status._replace(certain=status.certain and not alone))
        elif kind == packets.EOF and size == packets.EOF_BYTES:
            flags = int.from_bytes(packet[3:5], "little")
            self._answered(packets.Status(flags, False))
        elif kind == packets.INFILE and not alone:
            self._at = _FILE
        elif (count := packets.column_count(packet, size)) is None or alone:
            self._lose()
        else:
            self._at, self._columns, self._eof = _COLUMNS, count, False

    def _column(self, packet: bytes, size: int) -> None:
        self._columns -= 1
        if packet[:4] != _COLUMN or size == _WHOLE:
            self._lose()
        elif not self._columns:
            self._at, self._first = _ROWS, True

    def _row(self, packet: bytes, size: int) -> None:
        """A row, or what ends or follows: an EOF right behind the columns says that the client wants them."""
        first, self._first = self._first, False
        if packet[0] == packets.ERR:
            self._answered(None)
        elif packet[0] != packets.EOF or size == _WHOLE:
            self._at = _GOES_ON if size == _WHOLE else _ROWS
        elif first and size == packets.EOF_BYTES:
            self._eof = True
            if int.from_bytes(packet[3:5], "little") & packets.CURSOR:
                self._lose()
        elif (status := packets.status_of_end(packet, size, eof=self._eof)) is None:
            self._lose()
        else:
            self._answered(status)
