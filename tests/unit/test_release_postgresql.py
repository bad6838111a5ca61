# SPDX-License-Identifier: Apache-2.0
"""What PostgreSQL says of its transaction: nothing that may end one is inside of it, however the bytes are cut."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remusdb.core.release.postgresql import PostgresReader
from tests.unit.postgresql_words import (
    ALONE,
    BEGIN,
    CHAIN,
    COMMIT,
    FAILED,
    GREETING,
    ROWS,
    UPDATE,
    complete,
    message,
    ready,
)

NOTIFIED = message("A", bytes(9))


def _inside(reader: PostgresReader, *parts: bytes) -> list[bool]:
    return [reader.read(part, 0) for part in parts]


def _opened() -> PostgresReader:
    reader = PostgresReader()
    assert _inside(reader, GREETING, BEGIN) == [False, False] and reader.open
    return reader


def test_statements_of_a_transaction_are_inside_and_its_ends_are_not() -> None:
    reader = _opened()
    assert _inside(reader, UPDATE, ROWS, b"", COMMIT) == [True, True, True, False]
    assert not reader.open
    assert _inside(reader, ALONE, b"", BEGIN, UPDATE) == [False, False, False, True]


@pytest.mark.parametrize(
    "reply",
    [
        CHAIN,  # in a transaction before and after
        complete("ROLLBACK") + ready("T"),  # AND CHAIN, or TO SAVEPOINT
        complete("COMMIT") + complete("BEGIN") + ready("T"),  # several statements in one
        UPDATE[:-6] + complete("COMMIT") + complete("BEGIN") + ready("T"),
        complete("CALL") + ready("T"),
        complete("DO") + ready("T"),
        complete("PREPARE TRANSACTION") + ready("I"),
        complete("COMMIT PREPARED") + ready("T"),
        complete("START TRANSACTION") + ready("T"),
        complete("DISCARD ALL") + ready("T"),
        complete("A TAG OF TOMORROW") + ready("T"),
        FAILED,
        message("E", b"SERROR\0\0") + ready("T"),
        NOTIFIED + ready("T"),
        COMMIT,
    ],
)
def test_what_may_end_a_transaction_waits(reply: bytes) -> None:
    assert not _opened().read(reply, 0)
    for cut in range(1, len(reply)):  # in two frames: the end of one is never early
        reader = _opened()
        reader.read(reply[:cut], 0)
        assert not reader.read(reply[cut:], 0), cut


@pytest.mark.parametrize("reply", [COMMIT, CHAIN, complete("CALL") + ready("T"), FAILED])
def test_no_byte_of_a_word_that_may_end_it_is_inside(reply: bytes) -> None:
    for cut in range(1, len(reply)):
        assert not _opened().read(UPDATE + reply[:cut], 0), cut


def test_what_follows_a_word_that_ends_it_waits_until_it_is_ready() -> None:
    """The rows of a statement that was sent along behind a COMMIT."""
    reader = _opened()
    parts = [complete("COMMIT"), message("1"), message("2"), message("D", bytes(100)), complete("SELECT 1")]
    assert not any(_inside(reader, *parts)) and not reader.open
    assert _inside(reader, ready("T"), UPDATE) == [False, True]


@pytest.mark.parametrize("answer", [b"S", b"G"])
def test_what_is_encrypted_is_never_inside(answer: bytes) -> None:
    reader = PostgresReader()
    assert not any(_inside(reader, answer, GREETING, BEGIN, UPDATE)) and reader.lost


def test_a_server_without_encryption_is_read() -> None:
    reader = PostgresReader()
    assert _inside(reader, b"N", b"N", GREETING, BEGIN, UPDATE) == [False, False, False, False, True]


@pytest.mark.parametrize(
    "junk", [b"!\0\0\0\4", b"D\0\0\0\3", b"D\xff\xff\xff\xff", b"W\0\0\0\4", b"C\0\0\1\0", b"Z\0\0\0\5X"]
)
def test_what_does_not_parse_is_never_inside_again(junk: bytes) -> None:
    reader = _opened()
    assert not any(_inside(reader, junk, UPDATE, ready("T"), UPDATE))
    assert reader.lost and not reader.open


def test_a_row_may_hold_what_looks_like_the_protocol() -> None:
    """A client can have any bytes come back to it, or to another one."""
    reader = PostgresReader()
    reader.read(GREETING, 0)
    row = message("D", BEGIN * 10)
    assert not any(_inside(reader, row[:7], row[7:], complete("SELECT 1") + ready("I"), UPDATE[:-1] + b"I"))
    assert not reader.open


@given(st.lists(st.sampled_from([BEGIN, COMMIT, CHAIN, UPDATE, ROWS, ALONE, FAILED, NOTIFIED]), max_size=12), st.data())
def test_however_it_is_cut_it_ends_in_the_same_state_and_less_is_inside(said: list[bytes], data: st.DataObject) -> None:
    stream = GREETING + b"".join(said)
    whole, inside = PostgresReader(), bytearray()
    while len(inside) < len(stream):  # message by message
        at = len(inside)
        end = at + 1 + struct.unpack_from("!I", stream, at + 1)[0]
        inside += bytes([whole.read(stream[at:end], 0)]) * (end - at)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader = PostgresReader()
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if end > begin and reader.read(stream[begin:end], 0):
            assert all(inside[begin:end])
    assert (reader.open, reader.lost) == (whole.open, whole.lost)
