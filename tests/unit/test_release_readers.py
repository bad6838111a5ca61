# SPDX-License-Identifier: Apache-2.0
"""What real PostgreSQL and MariaDB servers answered, read: what may leave early, and what must wait."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remusdb.core.release.mysql import MySqlReader
from remusdb.core.release.postgresql import PostgresReader
from remusdb.core.release.readers import MarkReader, Reader
from tests.unit.release_frames import recorded

READERS: dict[str, type[PostgresReader | MySqlReader]] = {"postgresql15": PostgresReader, "mariadb1011": MySqlReader}
# What may leave early: the rest of each scenario must wait.
EARLY = {
    "postgresql15": {
        "plain": ["SELECT * FROM remus_t", "UPDATE remus_t SET a = a + 1", "SELECT 1"],
        "chain": ["SELECT 1", "SELECT 2", "SELECT 3"],
        "batch": ["SELECT 3"],
        "error": [],
        "savepoint": ["SAVEPOINT s", "SELECT 1", "RELEASE s"],
        "prepared": ["SELECT 1"],
        "call": ["SELECT 1"],
        "notify": ["NOTIFY remus", "SELECT 1"],
        "settings": ["SELECT 1"],
        "notice": ["SELECT 1"],
        "cursor": ["DECLARE c CURSOR FOR SELECT * FROM remus_t", "FETCH 20 FROM c", "CLOSE c"],
        "copy": ["COPY remus_t TO STDOUT", "SELECT 1"],
        "bulk": ["SELECT repeat('x', 300) FROM generate_series(1, 80)"],
        "extended": ["SELECT a FROM remus_t WHERE id = $1"],
    },
    "mariadb1011": {
        "plain": [
            *("SELECT * FROM remus_t", "UPDATE remus_t SET a = a + 1", "INSERT INTO remus_t (a) VALUES (7)"),
            "SELECT 1",
        ],
        "chain": ["SELECT 1", "SELECT 2", "SELECT 3"],
        "begin": ["SELECT 1", "SELECT 2"],
        "call": ["SELECT 1", "SELECT 2", "SELECT 3"],
        "error": ["SELECT 1", "SELECT 3"],
        "batch": ["SELECT 3"],
        "implicit": ["SELECT 1"],
        "manual": ["SELECT 1"],
        "compound": [],
        "bulk": ["SELECT REPEAT('x', 300), seq FROM seq_1_to_80", "SELECT 1"],
    },
}
CASES = [(server, name) for server, names in EARLY.items() for name in names]


def test_every_recorded_scenario_is_judged() -> None:
    assert {server: set(recorded(server)) for server in READERS} == {name: set(made) for name, made in EARLY.items()}


@pytest.mark.parametrize(("server", "name"), CASES)
def test_only_what_stays_inside_one_transaction_is_early(server: str, name: str) -> None:
    reader = READERS[server]()
    early = [asked for asked, answer in recorded(server)[name] if reader.read(answer, 0)]
    assert early == EARLY[server][name]
    assert not reader.lost


@given(st.sampled_from(CASES), st.data())
def test_however_it_is_cut_no_piece_of_an_answer_that_waits_is_early_once_it_says_so(
    case: tuple[str, str], data: st.DataObject
) -> None:
    """Pieces before the one that tells may pass: of rows, of a transaction that is open. The last never does."""
    server, name = case
    reader, whole, may = READERS[server](), READERS[server](), set(EARLY[server][name])
    for asked, answer in recorded(server)[name]:
        early, left = [], answer
        while left:
            size = data.draw(st.integers(1, len(left)))
            early.append(reader.read(left[:size], 0))
            left = left[size:]
        if asked not in may and early:
            assert not early[-1], asked
        whole.read(answer, 0)
        assert (reader.open, reader.lost) == (whole.open, whole.lost)


@given(st.sampled_from(sorted(READERS)), st.lists(st.binary(max_size=80), max_size=8))
def test_whatever_comes_state_is_bounded_and_what_is_lost_stays_so(server: str, pieces: list[bytes]) -> None:
    reader = READERS[server]()
    for piece in pieces:
        inside, lost = reader.read(piece, 0), reader.lost
        assert not (inside and not reader.open) and not (lost and reader.open)
        kept = [value for value in vars(reader).values() if isinstance(value, bytes)]
        assert sum(map(len, kept)) < 700


# --- PostgreSQL ---


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


ROW = message(b"D", b"\0\1\0\0\0\1x")
READY_T, READY_I = message(b"Z", b"T"), message(b"Z", b"I")


def inside() -> PostgresReader:
    reader = PostgresReader()
    reader.read(b"N" + message(b"R", bytes(4)) + READY_T, 0)
    assert reader.open
    return reader


@pytest.mark.parametrize("first", [b"S", b"G", b"NS", b"NG", b"\x16\x03\x03", b"N\0\0\0\x05x"])
def test_a_client_that_chose_encryption_is_lost_for_good(first: bytes) -> None:
    reader = PostgresReader()
    reader.read(first, 0)
    reader.read(message(b"R", bytes(4)) + READY_T, 0)
    assert reader.lost and not reader.open


@pytest.mark.parametrize(
    "tag",
    ["COMMIT", "ROLLBACK", "BEGIN", "START TRANSACTION", "PREPARE TRANSACTION", "CALL", "DO", "DISCARD ALL", "VACUUM"],
)
def test_a_tag_that_may_end_a_transaction_waits_and_what_follows_until_the_end(tag: str) -> None:
    reader = inside()
    assert not reader.read(message(b"C", tag.encode() + b"\0"), 0)
    assert not reader.read(b"", 0) and not reader.read(message(b"D", b"\0\1\0\0\0\1x"), 0)
    assert not reader.read(message(b"C", b"SELECT 1\0") + READY_T, 0)
    assert reader.read(message(b"C", b"SELECT 1\0") + READY_T, 0)


@pytest.mark.parametrize("kind", [b"E", b"N", b"S", b"A", b"V"])
def test_errors_notices_settings_notifications_and_fastpath_wait(kind: bytes) -> None:
    reader = inside()
    assert not reader.read(message(kind, b"x\0"), 0)
    assert not reader.read(message(b"D", bytes(2)), 0) and not reader.open


def test_a_row_that_looks_like_messages_is_a_row() -> None:
    reader = inside()
    forged = message(b"D", b"\0\1\0\0\0\x20" + message(b"C", b"COMMIT\0") + READY_I + message(b"C", b"BEGIN\0"))
    assert reader.read(forged, 0) and reader.open


def test_what_is_lost_stays_so_whatever_follows_in_the_same_piece() -> None:
    reader = inside()
    assert not reader.read(message(b"Z", b"X") + READY_T, 0)
    assert reader.lost and not reader.open and not reader.read(ROW, 0)


def test_copy_both_is_lost() -> None:
    reader = inside()
    assert not reader.read(message(b"W", b"\0\0\0"), 0) and reader.lost


# --- MySQL ---


def packet(number: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "little") + bytes([number]) + body


def logged_in() -> MySqlReader:
    reader = MySqlReader()
    for _asked, answer in recorded("mariadb1011")["plain"][:2]:  # login, and BEGIN
        reader.read(answer, 0)
    assert reader.open
    return reader


def greeting() -> bytes:
    answer = recorded("mariadb1011")["plain"][0][1]
    return answer[: 4 + int.from_bytes(answer[:3], "little")]


def result(status: int, *, old_eof: bool, rows: int = 2, cell: bytes = b"\1x") -> bytes:
    parts = [b"\1", b"\3def" + bytes(20)]
    if old_eof:
        parts.append(b"\xfe\0\0" + status.to_bytes(2, "little"))
    parts += [cell] * rows
    parts.append(b"\xfe\0\0" + b"\0\0" * (not old_eof) + status.to_bytes(2, "little"))
    if not old_eof:
        parts[-1] = b"\xfe\0\0" + status.to_bytes(2, "little") + b"\0\0"
    return b"".join(packet((number + 1) % 256, body) for number, body in enumerate(parts))


@pytest.mark.parametrize("old_eof", [True, False])
@pytest.mark.parametrize(
    ("status", "early"), [(0x01, True), (0x03, True), (0x02, False), (0x09, False), (0x4001, False)]
)
def test_one_result_set_is_early_only_inside_and_alone(*, old_eof: bool, status: int, early: bool) -> None:
    assert logged_in().read(result(status, old_eof=old_eof), 0) is early


def test_rows_may_be_many_and_of_any_content() -> None:
    for cell in (b"\xfb", b"\0\0\0\0", packet(1, b"\0\0\0\0\0\0\0"), b"x" * 9):
        reader = logged_in()
        assert reader.read(result(1, old_eof=True, rows=700, cell=cell), 0), cell


@pytest.mark.parametrize("length", [0x30, 0x230, 0x3230])
def test_tls_is_lost(length: int) -> None:
    reader = MySqlReader()
    reader.read(greeting(), 0)
    reader.read(b"\x16\x03\x03" + length.to_bytes(2, "big") + b"\2" + bytes(60), 0)
    assert reader.lost


@pytest.mark.parametrize(
    "body",
    [
        b"\0\0\0" + packet(1, b"\0\0\0\1\0\0\0"),  # as it is
        b"\x50\0\0\x78\x9c" + bytes(40),  # zlib
        b"\0\1\0\x78\x5e" + bytes(40),
        b"\0\1\0\x28\xb5\x2f\xfd" + bytes(40),  # Zstandard
    ],
)
def test_compression_is_lost(body: bytes) -> None:
    reader = MySqlReader()
    for part in (greeting(), packet(2, b"\0\0\0\2\0\0\0"), packet(1, body)):
        reader.read(part, 0)
    assert reader.lost


def test_a_cursor_is_lost_since_its_rows_look_like_anything() -> None:
    reader = logged_in()
    reader.read(result(0x41, old_eof=True), 0)
    assert reader.lost


def test_after_a_prepared_statement_nothing_is_open_until_the_next_answer() -> None:
    reader = logged_in()
    prepared = packet(1, b"\0\1\0\0\0\1\0\1\0\0\0\0") + packet(2, b"\3def" + bytes(9)) + packet(3, b"\xfe\0\0\1\0")
    assert not reader.read(prepared + packet(4, b"\3def" + bytes(9)) + packet(5, b"\xfe\0\0\1\0"), 0)
    assert not reader.open
    assert not reader.read(result(1, old_eof=True), 0)
    assert reader.read(result(1, old_eof=True), 0)


def test_an_ok_passes_only_with_what_no_procedure_gives() -> None:
    for body, early in (
        (b"\0\1\0\1\0\0\0", False),  # rows alone: DELETE, or CALL
        (b"\0\1\5\1\0\0\0", True),  # a last insert id
        (b"\0\1\0\1\0\0\0\4Rows", True),
        (b"\0\1\0\1\0\0\0\5Rows", False),  # its length is wrong
        (b"\0\0\0\1\0\0\0\4Rows", False),
        (b"\0\1\5\0\0\0\0", False),
        (b"\0\1\5\x09\0\0\0", False),
    ):
        assert logged_in().read(packet(1, body), 0) is early, body


def test_marks_pass_from_the_second_one_on() -> None:
    reader: Reader = MarkReader(9)
    assert [reader.read(b"x", dscp) for dscp in (9, 9, 0, 9, 9, 8)] == [False, True, False, False, True, False]
