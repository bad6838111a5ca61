# SPDX-License-Identifier: Apache-2.0
"""The frame header: round trips, and every way in which one can be wrong."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remusdb.core import wire
from remusdb.core.wire import FrameType, check_payload, decode_header, encode_header
from remusdb.errors import BadFrame

COUNTS = st.integers(0, 2**62)


def altered(header: bytes, offset: int, value: bytes) -> bytes:
    return header[:offset] + value + header[offset + len(value) :]


@given(st.sampled_from(FrameType), COUNTS, COUNTS, st.binary(max_size=500))
def test_round_trip(type: FrameType, term: int, epoch: int, payload: bytes) -> None:
    header = decode_header(encode_header(type, term, epoch, payload))
    check_payload(header, payload)
    assert (header.type, header.term, header.epoch, header.length) == (type, term, epoch, len(payload))


def test_layout_is_the_documented_one() -> None:
    header = encode_header(FrameType.COMMIT, 7, 9, b"abc")
    assert len(header) == wire.HEADER_BYTES == 40
    assert header[:4] == b"RMDB" and header[4] == wire.PROTOCOL_VERSION == 4 and header[5] == FrameType.COMMIT
    assert struct.unpack_from("<HIIQQ", header, 6) == (0, 3, 0, 7, 9)


def test_zero_is_no_frame_type() -> None:
    assert 0 not in [int(type) for type in FrameType]


@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(256)) * 3])
def test_every_single_byte_is_covered(payload: bytes) -> None:
    """Whatever byte is hit, by whatever change, the frame is refused."""
    frame = encode_header(FrameType.PAGES, 1, 2, payload) + payload
    for at in range(len(frame)):
        for flip in (0x01, 0x80, 0xFF):
            hit = altered(frame, at, bytes([frame[at] ^ flip]))
            with pytest.raises(BadFrame):
                check_payload(decode_header(hit[:40]), hit[40:])


@pytest.mark.parametrize(
    ("offset", "value", "text"),
    [
        (0, b"HTTP", "bad magic b'HTTP'"),
        (4, b"\x01", "the peer speaks protocol version 1, this side version 4"),
        (5, b"\x00", "unknown frame type 0"),
        (5, b"\x63", "unknown frame type 99"),
        (6, b"\x01\x00", "reserved bits"),
        (8, struct.pack("<I", wire.MAX_PAYLOAD + 1), "oversized frame: 16777217 bytes"),
        (8, b"\xff\xff\xff\xff", "oversized frame"),
        (12, b"\x00\x00\x00\x01", "reserved bits"),
    ],
)
def test_refused_with_the_reason(offset: int, value: bytes, text: str) -> None:
    header = altered(encode_header(FrameType.PAGES, 1, 2, b"payload"), offset, value)
    with pytest.raises(BadFrame, match=text):
        decode_header(header)


LIMITED = [
    (FrameType.ACK, 1024),
    (FrameType.HEARTBEAT, 1024),
    (FrameType.TAKEN, 1024),
    (FrameType.ASK, 4 << 10),
    (FrameType.WELCOME, 16 << 10),
    (FrameType.COMMIT, 128 << 10),
    (FrameType.BASE, 64 << 10),
    (FrameType.STANDING, 64 << 10),
    (FrameType.HELLO, 1 << 20),
    (FrameType.PROBE, 1 << 20),
]


@pytest.mark.parametrize(("type", "most"), LIMITED)
def test_a_frame_is_no_larger_than_its_type_may_be(type: FrameType, most: int) -> None:
    """Seen by the header alone: nothing of the payload is read."""
    assert wire.payload_limit(type) == most
    header = encode_header(type, 1, 2, bytes(most))
    assert decode_header(header).length == most
    for length in (most + 1, wire.MAX_PAYLOAD):
        with pytest.raises(BadFrame, match=f"oversized frame: {length} bytes of payload, the limit for {type.name}"):
            decode_header(altered(header, 8, struct.pack("<I", length)))
        with pytest.raises(ValueError, match=f"over the limit of {most}"):
            encode_header(type, 1, 2, bytes(length))


def test_what_is_not_named_there_has_the_whole_frame() -> None:
    named = {type for type, _ in LIMITED}
    assert {wire.payload_limit(type) for type in FrameType if type not in named} == {wire.MAX_PAYLOAD}


@pytest.mark.parametrize("offset", [16, 24])
@pytest.mark.parametrize("number", [2**62 + 1, 2**63, 2**64 - 1])
def test_a_term_or_epoch_out_of_range(offset: int, number: int) -> None:
    header = altered(encode_header(FrameType.ACK, 2**62, 2**62, b""), offset, struct.pack("<Q", number))
    with pytest.raises(BadFrame, match="is out of range"):
        decode_header(header)
    for term, epoch in ((number, 0), (0, number), (-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="is out of range"):
            encode_header(FrameType.ACK, term, epoch, b"")


def test_each_side_says_what_is_its_to_say() -> None:
    """And a session is opened by one of three frames, none of which may be in it."""
    assert wire.FROM_PRIMARY & wire.FROM_AGENT == {FrameType.HEARTBEAT}
    assert not wire.OPENINGS & (wire.FROM_PRIMARY | wire.FROM_AGENT)
    opened = wire.OPENINGS | wire.ANSWERS | {FrameType.STANDING}
    assert wire.FROM_PRIMARY | wire.FROM_AGENT | opened == set(FrameType)
    for allowed in (wire.FROM_PRIMARY, wire.FROM_AGENT, wire.OPENINGS, wire.ANSWERS):
        for type in FrameType:
            header = encode_header(type, 1, 1, b"")
            if type in allowed:
                assert decode_header(header, allowed).type is type
            else:
                with pytest.raises(BadFrame, match=f"a {type.name} frame where none may come"):
                    decode_header(header, allowed)


@settings(max_examples=500)
@given(
    st.binary(min_size=40, max_size=40)
    | st.binary(max_size=35).map(lambda rest: wire.MAGIC + bytes([wire.PROTOCOL_VERSION]) + rest)
)
def test_any_header_is_one_within_its_bounds_or_refused(data: bytes) -> None:
    try:
        header = decode_header(data)
    except BadFrame:
        return
    assert header.length <= wire.payload_limit(header.type)
    assert max(header.term, header.epoch) <= 2**62


def test_another_version_is_named_before_anything_else_is_judged() -> None:
    """A later version may change all that follows the version byte."""
    with pytest.raises(BadFrame, match="version 9") as caught:
        decode_header(b"RMDB\x09" + b"\xff" * 35)
    assert "same remusdb" in caught.value.hint


@pytest.mark.parametrize("length", [0, 1, 39, 41])
def test_truncated_header(length: int) -> None:
    with pytest.raises(BadFrame, match=f"truncated header: {length} of 40"):
        decode_header((encode_header(FrameType.ACK, 1, 1, b"") + b"more")[:length])


@pytest.mark.parametrize("payload", [b"", b"12345678", b"1234567890"])
def test_truncated_or_overlong_payload(payload: bytes) -> None:
    header = decode_header(encode_header(FrameType.PAGES, 1, 1, b"123456789"))
    with pytest.raises(BadFrame, match=f"truncated payload: {len(payload)} of 9"):
        check_payload(header, payload)


def test_the_limit_itself_fits_and_one_more_is_the_callers_bug() -> None:
    payload = bytes(wire.MAX_PAYLOAD)
    check_payload(decode_header(encode_header(FrameType.PAGES, 1, 1, payload)), memoryview(payload))
    with pytest.raises(ValueError, match="over the limit"):
        encode_header(FrameType.PAGES, 1, 1, payload + b"x")
