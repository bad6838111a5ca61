# SPDX-License-Identifier: Apache-2.0
"""Compressed content that is not what it says: refused before any of it takes memory."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from remusdb.core.devices import HEAD, MAX_DEVICE_STATE_BYTES, WHOLE, XOR, decode_devices, encode_devices
from remusdb.core.pagecache import PageCache
from remusdb.core.pages import PAYLOAD_PAGES, decode_pages
from remusdb.core.pages_encode import encode_pages
from remusdb.core.writes import MAX_RAW, Kind, decode_writes, encode_writes, iter_records
from remusdb.core.zstdframe import decompress
from remusdb.errors import BadFrame

BLOCK = 128 << 10  # zstd's largest


def bomb(size: int, stated: int | None = None) -> bytes:
    """A valid frame of `size` zeros, four bytes for each 128 KiB, that states `stated` bytes."""
    one = (BLOCK << 3 | 1 << 1).to_bytes(3, "little") + b"\0"  # a run of one byte
    last = (BLOCK << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    head = zstandard.MAGIC_NUMBER.to_bytes(4, "little") + bytes(
        [3 << 6, 7 << 3]
    )  # 8 bytes of size; a window of 128 KiB
    return head + struct.pack("<Q", size if stated is None else stated) + one * (size // BLOCK - 1) + last


SMALL = zstandard.ZstdCompressor().compress(bytes(100))
UNSTATED = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))
SKIPPABLE = b"\x50\x2a\x4d\x18" + struct.pack("<I", 100) + bytes(100)
TRAINED = zstandard.train_dictionary(1 << 12, [bytes([at, at * 7 % 256]) * 50 + b"%d" % at for at in range(256)])
BY_DICTIONARY = zstandard.ZstdCompressor(dict_data=TRAINED).compress(bytes(100))

# What stands for one frame of 100 bytes, and is none.
WRONG = {
    "more than it should": bomb(BLOCK),
    "states 4 EiB": bomb(BLOCK, 1 << 62),
    "states less than it holds": bomb(2 * BLOCK, 100),
    "states more than it holds": SMALL[:4] + bytes([SMALL[4], 200]) + SMALL[6:],
    "no size": UNSTATED,
    "skippable": SKIPPABLE,
    "skippable first": SKIPPABLE + SMALL,
    "skippable behind": SMALL + SKIPPABLE,
    "two frames": zstandard.ZstdCompressor().compress(bytes(50)) * 2,
    "a frame and another": SMALL + SMALL,
    "bytes behind": SMALL + b"\0",
    "cut": SMALL[:-1],
    "the head alone": SMALL[:6],
    "nothing": b"",
    "needs a dictionary": BY_DICTIONARY,
    "damaged": SMALL[:8] + b"\xff" * (len(SMALL) - 8),
    "another format": b"\x1f\x8b" + SMALL[2:],
}


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_is_right_is_read(kind: Callable[[bytes], bytes]) -> None:
    assert decompress(kind(SMALL), "it", 100, 100) == bytes(100)
    assert decode_devices(kind(HEAD.pack(WHOLE, 100) + SMALL), b"") == bytes(100)


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_one_frame_of_its_size_is_refused(wrong: str) -> None:
    with pytest.raises(BadFrame, match=r"^it "):
        decompress(WRONG[wrong], "it", 100, 100)
    with pytest.raises(BadFrame):
        decode_devices(HEAD.pack(WHOLE, 100) + WRONG[wrong], b"")
    with pytest.raises(BadFrame):
        decode_devices(HEAD.pack(XOR, 100) + WRONG[wrong], bytes(100))
    with pytest.raises(BadFrame):
        list(iter_records(decode_writes(WRONG[wrong])))
    with pytest.raises(BadFrame):
        decode_pages(struct.pack("<BBHIII", 1, 0, 0, 25, 0, 0) + WRONG[wrong])  # 25 zero pages: 100 bytes of gaps


CHILD = """
import resource, struct, sys, time
from remusdb.core import devices, pages, writes
from remusdb.errors import BadFrame
bomb = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
room = int(open("/proc/self/statm").read().split()[0]) * 4096 + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
for decode in (
    lambda: devices.decode_devices(devices.HEAD.pack(devices.WHOLE, 100_000) + bomb, b""),
    lambda: devices.decode_devices(devices.HEAD.pack(devices.XOR, 100_000) + bomb, bytes(100_000)),
    lambda: devices.decode_devices(devices.HEAD.pack(devices.WHOLE, 0xFFFFFFFF) + bomb, b""),
    lambda: writes.decode_writes(bomb),
    lambda: pages.decode_pages(struct.pack("<BBHIII", 1, 0, 0, 0, 2048, 0) + bomb),
):
    try:
        decode()
    except BadFrame as error:
        assert "compress:" not in str(error), error  # it was not even begun
    else:
        sys.exit("taken")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("stated", [None, 1 << 40, 1 << 62, 0])
def test_a_bomb_of_3_gib_takes_no_memory(stated: int | None) -> None:
    data = bomb(3 << 30, stated)
    assert len(data) < 99_000
    ran = subprocess.run([sys.executable, "-c", CHILD], input=data, capture_output=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    assert int(ran.stdout) < 20_000  # KiB


def test_a_state_larger_than_any_is_refused_by_its_head() -> None:
    with pytest.raises(BadFrame, match="device state of kind 1"):
        decode_devices(HEAD.pack(WHOLE, MAX_DEVICE_STATE_BYTES + 1) + SMALL, b"")


RECORD_LOG = encode_writes(struct.pack("<BBHIQ", Kind.WRITE, 0, 0, 4096, 8192) + bytes(range(256)) * 16)[0]
CONTENT = np.arange(9 * 4096, dtype=np.uint8).reshape(9, 4096)
PAGES = encode_pages(0, np.arange(9), CONTENT, PageCache(9, 9)).payloads[0]
STATE = encode_devices(bytes(range(256)) * 40, b"")


@pytest.mark.slow
@settings(max_examples=300)
@given(
    st.sampled_from([RECORD_LOG, STATE, PAGES]),
    st.lists(st.tuples(st.integers(0, 4096), st.binary(max_size=6)), max_size=4),
)
def test_mutated_payloads_are_read_or_refused(payload: bytes, changes: list[tuple[int, bytes]]) -> None:
    for at, put in changes:
        payload = payload[: at % len(payload)] + put + payload[at % len(payload) + len(put) // 2 :]
    for decode, most in (
        (lambda: decode_devices(payload, bytes(range(256)) * 40), MAX_DEVICE_STATE_BYTES),
        (lambda: decode_writes(payload), MAX_RAW),
        (lambda: decode_pages(payload).data, PAYLOAD_PAGES),
    ):
        try:
            assert len(decode()) <= most
        except BadFrame:
            pass
