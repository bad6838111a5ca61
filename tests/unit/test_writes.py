# SPDX-License-Identifier: Apache-2.0
"""The write log's records: round trips, splitting, and what is refused."""

from __future__ import annotations

import os
import threading

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from remusdb.core import writes
from remusdb.core.writes import RECORD, Kind, decode_writes, encode_writes, iter_records
from remusdb.errors import BadFrame

MIB = 1024 * 1024


def write(offset: int, data: bytes, disk: int = 0) -> bytes:
    return RECORD.pack(Kind.WRITE, disk, 0, len(data), offset) + data


def logs() -> st.SearchStrategy[bytes]:
    offsets, disks = st.integers(0, 2**62), st.integers(0, 255)
    record = st.one_of(
        st.builds(write, offsets, st.binary(max_size=300), disks),
        st.builds(
            lambda kind, disk, length, offset: RECORD.pack(kind, disk, 0, length, offset),
            st.sampled_from([Kind.ZERO, Kind.TRIM]),
            disks,
            st.integers(0, 2**32 - 1),
            offsets,
        ),
    )
    return st.lists(record, max_size=20).map(b"".join)


def applied(raw: bytes, size: int) -> bytes:
    """A disk of `size` bytes after the log."""
    disk = bytearray(size)
    for record in iter_records(raw):
        content = record.data if record.kind is Kind.WRITE else bytes(record.length)
        disk[record.offset : record.offset + record.length] = content
    return bytes(disk)


@given(logs())
def test_round_trip(raw: bytes) -> None:
    payloads = encode_writes(raw)
    assert b"".join(decode_writes(payload) for payload in payloads) == raw
    assert bool(payloads) == bool(raw)
    rebuilt = [RECORD.pack(r.kind, r.disk, 0, r.length, r.offset) + r.data for r in iter_records(raw)]
    assert b"".join(rebuilt) == raw


@given(logs(), st.data())
def test_a_cut_log_is_refused_or_ends_between_records(raw: bytes, data: st.DataObject) -> None:
    cut = raw[: data.draw(st.integers(0, len(raw)))]
    refusal, whole = "", 0
    try:
        whole = sum(RECORD.size + len(record.data) for record in iter_records(cut))
    except BadFrame as error:
        refusal = str(error)
    assert "cut inside" in refusal or whole == len(cut)


def test_a_long_log_is_split_between_records() -> None:
    raw = b"".join(write(number * 65536, os.urandom(65536)) for number in range(300))
    payloads = encode_writes(memoryview(raw))
    assert len(payloads) == 3
    parts = [decode_writes(payload) for payload in payloads]
    assert b"".join(parts) == raw
    for part in parts:
        assert len(part) <= writes.MAX_RAW
        list(iter_records(part))  # each on its own is whole


@pytest.mark.parametrize("length", [8 * MIB - 16, 8 * MIB - 15, 8 * MIB, 32 * MIB, 32 * MIB - 1])
def test_a_write_too_large_for_a_payload_becomes_several(length: int) -> None:
    """NBD writes are up to 32 MiB; the records around it keep their place."""
    raw = write(0, b"before" * 10) + write(4096, os.urandom(length)) + write(4096 + length - 3, b"after!")
    parts = [decode_writes(payload) for payload in encode_writes(raw)]
    assert all(len(part) <= writes.MAX_RAW for part in parts)
    assert applied(b"".join(parts), 4096 + 33 * MIB) == applied(raw, 4096 + 33 * MIB)


def test_zero_and_trim_carry_no_data_whatever_their_length() -> None:
    raw = RECORD.pack(Kind.ZERO, 1, 0, 2**32 - 1, 0) + RECORD.pack(Kind.TRIM, 2, 0, 2**31, 512)
    (payload,) = encode_writes(raw)
    kinds = [(r.kind, r.disk, r.length, bytes(r.data)) for r in iter_records(decode_writes(payload))]
    assert kinds == [(Kind.ZERO, 1, 2**32 - 1, b""), (Kind.TRIM, 2, 2**31, b"")]


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (RECORD.pack(0, 0, 0, 0, 0), "no such record .kind 0"),
        (RECORD.pack(4, 0, 0, 0, 0), "no such record .kind 4"),
        (RECORD.pack(Kind.ZERO, 0, 1, 0, 0), "reserved 1"),
        (RECORD.pack(Kind.TRIM, 0, 0, 2, 2**63 - 1), "beyond any disk"),
        (RECORD.pack(Kind.WRITE, 0, 0, 2**32 - 1, 0) + b"x", "cut inside the 4294967295 bytes"),
        (b"\x01", "cut inside a record header, at byte 0 of 1"),
    ],
)
def test_odd_records_are_refused(record: bytes, text: str) -> None:
    with pytest.raises(BadFrame, match=text):
        list(iter_records(record))
    with pytest.raises(BadFrame, match=text):
        encode_writes(record)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(writes.MAX_RAW + 1))
    with pytest.raises(BadFrame, match="claims 8388609 bytes"):
        decode_writes(bomb)


def test_a_frame_that_does_not_state_its_size_is_refused() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    with pytest.raises(BadFrame, match="claims"):
        decode_writes(compressor.compress(write(0, b"x")))


@pytest.mark.parametrize("payload", [b"", b"x", b"not zstd at all", zstandard.compress(b"")])
def test_what_is_no_payload_is_refused(payload: bytes) -> None:
    with pytest.raises(BadFrame):
        decode_writes(payload)


def test_truncated_payloads_and_trailing_bytes_are_refused() -> None:
    (payload,) = encode_writes(write(0, os.urandom(500)))
    for length in range(len(payload)):
        with pytest.raises(BadFrame):
            decode_writes(payload[:length])
    with pytest.raises(BadFrame):
        decode_writes(payload + b"x")


def test_threads_have_their_own_contexts() -> None:
    """zstd's contexts are not thread-safe; wrong sharing shows as garbage or a crash."""
    raw = b"".join(write(number * 4096, bytes([number % 251]) * 4096) for number in range(500))
    right: list[bool] = []

    def work() -> None:
        right.extend(b"".join(map(decode_writes, encode_writes(raw))) == raw for _ in range(30))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 120
