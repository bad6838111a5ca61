# SPDX-License-Identifier: Apache-2.0
"""The reader of MySQL's protocol, on what a real MariaDB said (tools/lab/mariasays.py makes it anew).

What it calls inside leaves before the backup has it: a reply to anything that commits, called so, is a lost row.
"""

from __future__ import annotations

import itertools
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remusdb.core.release.mysql import MySqlReader
from tools.lab.mariaasked import CONNECTIONS, ENDS, PARTS, WAITS

DATA = Path(__file__).parent / "data" / "mariadb-bookworm.json.zz"
SAID: dict[str, list[tuple[str, bytes]]] = {
    name: [(text, bytes.fromhex(said)) for text, said in heard]
    for name, heard in json.loads(zlib.decompress(DATA.read_bytes())).items()
}
HOW = [f"autocommit {auto}, {name}" for name in ("classic", "without EOF") for auto in (1, 0)]


def packet(sequence: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "little") + bytes([sequence]) + body


def ok(affected: int, status: int, text: bytes = b"") -> bytes:
    told = bytes([len(text)]) + text if text else b""
    return packet(1, bytes([0, affected, 0]) + status.to_bytes(2, "little") + b"\0\0" + told)


def in_transaction(name: str = f"SELECT 1, {HOW[0]}") -> MySqlReader:
    """After all but the last of a connection."""
    reader = MySqlReader()
    for _text, said in SAID[name][:-1]:
        assert not reader.read(said, 0) or reader.open
    assert reader.open and not reader.lost
    return reader


def test_each_that_was_asked_was_heard() -> None:
    assert {name for name, _more, _statements in CONNECTIONS} == set(SAID)
    failed = {text for name, heard in SAID.items() for text, said in heard if said[4] == 0xFF}
    assert failed == {"SELECT 1 FROM nowhere"}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("text", ENDS)
def test_whatever_ends_a_transaction_waits_in_each_of_its_answers(text: str, how: str) -> None:
    heard = SAID[f"{text}, {how}"]
    reader = MySqlReader()
    for asked, said in heard:
        inside = reader.read(said, 0)
        assert not inside or asked.startswith("UPDATE a SET v = v + 1 ORDER BY")
    assert not reader.lost and not inside


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("text", PARTS)
def test_a_part_of_a_transaction_is_inside(text: str, how: str) -> None:
    reader = in_transaction(f"{text}, {how}")
    assert reader.read(SAID[f"{text}, {how}"][-1][1], 0)
    assert reader.open and reader.read(b"", 0)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("text", WAITS)
def test_what_cannot_be_told_from_a_procedure_waits(text: str, how: str) -> None:
    reader = in_transaction(f"{text}, {how}")
    assert not reader.read(SAID[f"{text}, {how}"][-1][1], 0) and not reader.lost
    assert reader.open is (text != "SELECT 1 FROM nowhere")  # an error may have been a deadlock's


@pytest.mark.parametrize("name", sorted(name for name in SAID if "autocommit 1" in name))
def test_the_state_does_not_depend_on_how_a_stream_is_cut(name: str) -> None:
    stream = b"".join(said for _text, said in SAID[name])
    whole = MySqlReader()
    whole.read(stream, 0)
    one_by_one, at, may_begin = MySqlReader(), 0, set[int]()
    for _text, answer in SAID[name]:  # from where on everything is inside, answer by answer
        may_begin = may_begin | {at} if one_by_one.read(answer, 0) else set()
        at += len(answer)
    for at in range(1, len(stream)):
        cut = MySqlReader()
        cut.read(stream[:at], 0)
        said = cut.read(stream[at:], 0)
        assert (cut.open, cut.lost) == (whole.open, whole.lost)
        assert not said or at in may_begin


@given(st.sampled_from(sorted(SAID)), st.data())
def test_no_segmentation_lets_more_out(name: str, data: st.DataObject) -> None:
    """A frame that is inside holds nothing but whole answers, each of which is inside by itself."""
    heard = SAID[name]
    ends, allowed, one_by_one, at = {0}, set[int](), MySqlReader(), 0
    for _text, said in heard:
        if one_by_one.read(said, 0):
            allowed |= set(range(at, at + len(said)))
        at += len(said)
        ends.add(at)
    stream = b"".join(said for _text, said in heard)
    cuts = sorted({0, at, *data.draw(st.lists(st.integers(1, at - 1), max_size=12))})
    reader = MySqlReader()
    for start, end in itertools.pairwise(cuts):
        if reader.read(stream[start:end], 0):
            assert set(range(start, end)) <= allowed
            assert start in ends and end in ends
    assert (reader.open, reader.lost) == (one_by_one.open, one_by_one.lost)


@pytest.mark.parametrize(
    "said",
    [
        packet(1, b"\xfbfile"),  # LOAD DATA LOCAL INFILE
        packet(1, b"\xff\xff\xff progress"),
        packet(1, b"\0\1\0\3\0\0\0\x05abc"),  # its text is cut
    ],
)
def test_what_says_nothing_of_the_transaction_waits(said: bytes) -> None:
    assert not in_transaction().read(said, 0)


@pytest.mark.parametrize("how", HOW)
def test_the_answer_to_prepare_may_be_an_ok_until_the_next_one_tells(how: str) -> None:
    name = f"prepared: UPDATE a SET v = v + 1, {how}"
    reader = MySqlReader()
    for _text, said in SAID[name][:-1]:
        reader.read(said, 0)
    assert not reader.open and not reader.lost
    executed = SAID[name][-1][1]
    assert not reader.read(executed, 0)  # whether a transaction was open is not known
    assert reader.open and reader.read(executed, 0)


DEFINITION = b"\3def" + bytes(20)
EOF_IN_TRANS = b"\xfe\0\0\3\0"
RESULT = [b"\1", DEFINITION, EOF_IN_TRANS, b"\0011", EOF_IN_TRANS]


def response(*bodies: bytes) -> bytes:
    return b"".join(packet((1 + number) % 256, body) for number, body in enumerate(bodies))


@pytest.mark.parametrize(
    "said",
    [
        response(*RESULT[:3], *[b"\0011"] * 1000, EOF_IN_TRANS),  # sequence numbers begin anew
        response(*RESULT[:3], b"x" * 0xFFFFFF, b"\xfe\0\0\0\0", EOF_IN_TRANS),  # a row in two packets
        response(*RESULT[:3], b"\xfe" + b"x" * 0xFFFFFE, b"", EOF_IN_TRANS),  # in two, the second is empty
        response(*RESULT) * 3,
        ok(1, 3, b"Records: 2  Duplicates: 0  Warnings: 0"),
    ],
)
def test_more_that_is_inside(said: bytes) -> None:
    reader = in_transaction()
    assert reader.read(said, 0) and reader.open


@pytest.mark.parametrize(
    "said",
    [
        packet(2, ok(1, 3)[4:]),
        packet(0, ok(1, 3)[4:]),
        packet(1, b""),
        packet(1, b"\2def"),
        packet(1, b"Uptime: 12  Threads: 1"),
        packet(1, b"\xfemysql_clear_password\0"),
        response(*RESULT[:2], b"\xfe\0\0\x43\0"),  # a cursor
        response(*RESULT[:1], b"\3abc"),
        response(*RESULT[:4], b"\xfe\0\0\3\0\0\0"),  # both ways to end
        b"\x17\3\3\0\x20" + bytes(32),  # a TLS record
    ],
)
def test_what_is_not_understood_is_lost_for_good(said: bytes) -> None:
    reader = in_transaction()
    assert not reader.read(said, 0)
    assert reader.lost and not reader.open
    for _ in range(3):
        assert not reader.read(response(*RESULT), 0) and not reader.read(b"", 0)


def test_a_client_that_goes_on_in_tls_is_never_inside() -> None:
    reader = MySqlReader()
    reader.read(SAID[f"SELECT 1, {HOW[0]}"][0][1], 0)
    assert not reader.read(b"\x16\3\3\0\x7a\2\0" + bytes(120), 0) and reader.lost


@pytest.mark.parametrize("status", range(1 << 4))
@pytest.mark.parametrize("text", [b"", b"Rows matched: 1  Changed: 1  Warnings: 0"])
@pytest.mark.parametrize("affected", [0, 1])
def test_an_ok_is_inside_only_if_it_changed_rows_and_says_so(affected: int, text: bytes, status: int) -> None:
    reader = in_transaction()
    assert reader.read(ok(affected, status, text), 0) is bool(affected and text and status & 9 == 1)


def with_status(status: int) -> bytes:
    return response(*RESULT[:4], b"\xfe\0\0" + bytes([status, 0]))


def test_a_frame_is_judged_by_each_of_its_answers() -> None:
    assert not in_transaction().read(with_status(2) + with_status(3), 0)
    assert not in_transaction().read(with_status(3) + with_status(2), 0)
    assert in_transaction().read(with_status(3) + with_status(3), 0)


def test_a_result_with_more_to_come_waits_as_a_procedures() -> None:
    reader = in_transaction()
    more = [*RESULT[:4], b"\xfe\0\0\x0b\0"]
    assert not reader.read(response(*more, *RESULT), 0) and reader.open
    assert not reader.read(response(*more), 0) and not reader.open
