# SPDX-License-Identifier: Apache-2.0
"""Pages as payloads: what the backup rebuilds is what the primary captured. Each test runs with both page kernels."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from remusdb import native
from remusdb.core import pages, pages_encode
from remusdb.core.pagecache import PageCache
from remusdb.core.pages import Encoding, decode_pages, resolve
from remusdb.core.pages_encode import PagesEncoded
from remusdb.core.pagework import LINE_BYTES, LINES, PAGE_BYTES
from remusdb.core.wire import MAX_PAYLOAD
from remusdb.errors import BadFrame

Bytes = NDArray[np.uint8]
HEAD = struct.Struct("<BBHIII")
LINE = bytes(range(LINE_BYTES))


@pytest.fixture(params=["native", "numpy"], autouse=True, scope="module")
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """For a module: hypothesis wants no fixture that is made for each test."""
    built, native.kernels = native.kernels, None
    if request.param == "native":
        assert built is not None, "remusdb/native/kernels.c was not built: tools/venv.sh says why"
        native.kernels = built
    yield
    native.kernels = built


def blank(count: int) -> Bytes:
    return np.zeros((count, PAGE_BYTES), np.uint8)


def apply(payloads: list[bytes], ram: Bytes, block: int = 0) -> None:
    """What the agent does with the payloads of an epoch."""
    for payload in payloads:
        decoded = decode_pages(payload)
        assert decoded.block == block
        decoded.require_within(len(ram))
        ram[decoded.zero] = 0
        ram[decoded.numbers] = resolve(decoded, ram[decoded.numbers])


def encode_pages(
    block: int, numbers: NDArray[np.int64], content: Bytes, shadow: Bytes, encoding: Encoding
) -> PagesEncoded:
    """With all that is in `shadow` known, which is brought up to date."""
    if encoding == "full":
        return pages_encode.encode_full(block, numbers, content)
    cache = PageCache(len(shadow), len(shadow))
    cache.content = shadow
    return pages_encode.encode_pages(block, numbers, content, cache)


def encode_all(ram: Bytes, shadow: Bytes, encoding: Encoding = "delta") -> PagesEncoded:
    return encode_pages(0, np.arange(len(ram)), ram, shadow, encoding)


def forged(pages_: int, zeros: int, body: bytes, code: int = 1, lines: int | None = None) -> bytes:
    """`lines`: one a page, where it is not said."""
    head = HEAD.pack(code, 0, 0, zeros, pages_, (pages_ if lines is None else lines) if code == 1 else 0)
    return head + (body if code == 2 else zstandard.compress(body, 1))


def gaps(*values: int) -> bytes:
    return np.array(values, np.uint32).tobytes()


def masks(*values: int) -> bytes:
    return np.array(values, np.uint64).tobytes()


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(["delta", "full"]), st.integers(1, 200))
def test_the_replica_follows_epoch_by_epoch(seed: int, encoding: Encoding, size: int) -> None:
    random = np.random.default_rng(seed)
    ram, shadow, replica = blank(size), blank(size), blank(size)
    for _ in range(6):
        touched = np.nonzero(random.random(size) < random.random())[0]
        fate = random.integers(0, 4, len(touched))  # stays, becomes zero, one byte changes, all changes
        ram[touched[fate == 1]] = 0
        ram[touched[fate == 2], random.integers(0, PAGE_BYTES, np.count_nonzero(fate == 2))] += 1
        ram[touched[fate == 3]] = random.integers(0, 256, (np.count_nonzero(fate == 3), PAGE_BYTES))
        before = shadow.copy()
        encoded = encode_pages(0, touched, ram[touched], shadow, encoding)
        apply(encoded.payloads, replica)
        assert np.array_equal(replica, ram)
        assert np.array_equal(shadow, ram if encoding == "delta" else before)
        assert encoded.pages == len(touched) >= encoded.changed >= encoded.zero


def test_unchanged_pages_are_dropped_and_zero_pages_are_an_index() -> None:
    shadow = np.full((10, PAGE_BYTES), 7, np.uint8)
    ram = shadow.copy()
    ram[3] = 0
    ram[5, 4095] = 8
    encoded = encode_all(ram, shadow)
    assert (encoded.pages, encoded.changed, encoded.zero) == (10, 2, 1)
    (payload,) = encoded.payloads
    decoded = decode_pages(payload)
    assert (decoded.zero.tolist(), decoded.numbers.tolist()) == ([3], [5])
    assert decoded.masks.tolist() == [1 << 63] and decoded.data.shape == (1, LINE_BYTES)
    assert np.flatnonzero(decoded.data).tolist() == [63] and decoded.data[0, 63] == 7 ^ 8
    assert len(payload) < 100


def test_nothing_changed_is_no_payload() -> None:
    assert encode_all(blank(5000), blank(5000)) == PagesEncoded([], 5000, 0, 0)
    nothing = encode_pages(0, np.empty(0, np.int64), blank(0), blank(4), "delta")
    assert nothing == PagesEncoded([], 0, 0, 0) == encode_pages(0, np.empty(0, np.int64), blank(0), blank(4), "full")


@pytest.mark.parametrize("encoding", ["delta", "full"])
def test_no_payload_is_too_large(encoding: Encoding) -> None:
    """Also of content that does not compress."""
    ram = np.random.default_rng(1).integers(0, 256, (5000, PAGE_BYTES), np.uint8)
    replica = blank(5000)
    encoded = encode_all(ram, blank(5000), encoding)
    assert len(encoded.payloads) == 3 and max(map(len, encoded.payloads)) <= MAX_PAYLOAD
    apply(encoded.payloads, replica)
    assert np.array_equal(replica, ram)


@pytest.mark.slow
def test_many_zero_pages_are_several_payloads() -> None:
    """A block of 560 MB that becomes zero; the views let one page stand for all."""
    count = 140_000
    content = np.broadcast_to(np.zeros((1, PAGE_BYTES), np.uint8), (count, PAGE_BYTES))
    shadow = np.ones((count, PAGE_BYTES), np.uint8)
    encoded = encode_pages(0, np.arange(count), content, shadow, "delta")
    assert encoded.zero == encoded.changed == count and len(encoded.payloads) == 3
    zeros = np.concatenate([decode_pages(payload).zero for payload in encoded.payloads])
    assert np.array_equal(zeros, np.arange(count)) and not shadow.any()


def test_high_page_numbers_and_block_numbers_survive() -> None:
    shadow = np.broadcast_to(np.zeros((1, PAGE_BYTES), np.uint8), (2**31, PAGE_BYTES))
    numbers = np.array([0, 2**30, 2**31 - 1])
    content = np.ones((3, PAGE_BYTES), np.uint8)
    (payload,) = encode_pages(65535, numbers, content, shadow, "full").payloads
    decoded = decode_pages(payload)
    assert decoded.block == 65535 and np.array_equal(decoded.numbers, numbers)


def test_content_that_is_read_only_will_do() -> None:
    content = np.frombuffer(b"\x05" * PAGE_BYTES * 3, np.uint8).reshape(3, PAGE_BYTES)
    shadow, replica = blank(9), blank(9)
    apply(encode_pages(0, np.array([1, 4, 8]), content, shadow, "delta").payloads, replica)
    assert replica[[1, 4, 8]].min() == 5 and np.array_equal(replica, shadow)


@pytest.mark.parametrize("numbers", [[1, 1, 2], [2, 1, 3], [-1, 0, 1], [7, 8, 10]])
def test_numbers_that_make_no_sense_are_the_callers_bug(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="must grow"):
        encode_pages(0, np.array(numbers), blank(3), blank(10), "delta")


def test_shapes_that_do_not_fit_are_the_callers_bug() -> None:
    with pytest.raises(ValueError, match="3 page numbers"):
        encode_pages(0, np.arange(3), blank(2), blank(10), "delta")


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", "no head"),
        (bytes(15), "no head"),
        (forged(1, 0, bytes(PAGE_BYTES + 4), code=4)[:16], "no known encoding"),
        (forged(1, 0, bytes(PAGE_BYTES + 4), code=3)[:16], "cannot hold 0 lines .fresh"),
        (HEAD.pack(1, 1, 0, 0, 1, 1), "no known encoding"),
        (forged(0, 0, b""), "cannot hold 0 pages and 0 zero pages"),
        (forged(2049, 0, b""), "cannot hold 2049 pages"),
        (forged(0, 65537, b""), "cannot hold 0 pages and 65537"),
        (forged(2**32 - 1, 2**32 - 1, b""), "cannot hold"),
        (forged(0, 1, gaps(5), code=2), "cannot hold 0 pages and 1 zero pages .full"),
        (forged(1, 0, bytes(PAGE_BYTES + 3), code=2), "4099 bytes, 4100 were announced"),
        (HEAD.pack(2, 0, 0, 0, 1, 1) + bytes(PAGE_BYTES + 4), "1 pages cannot hold 1 lines .full"),
        (forged(1, 0, LINE + masks(1) + gaps(5) + b"x"), "77 bytes, 76 were announced"),
        (forged(2048, 0, bytes(10), lines=2048 * LINES), "10 bytes, 8413184 were announced"),
        (forged(2, 0, LINE, lines=1), "2 pages cannot hold 1 lines"),
        (forged(1, 0, LINE, lines=LINES + 1), "1 pages cannot hold 65 lines"),
        (forged(1, 0, b"", lines=2**32 - 1), "cannot hold 4294967295 lines"),
        (forged(0, 1, gaps(5), lines=1), "0 pages cannot hold 1 lines"),
        (forged(1, 0, LINE + masks(3) + gaps(5)), "says otherwise of its pages"),
        (forged(1, 0, LINE * 2 + masks(1) + gaps(5), lines=2), "says otherwise of its pages"),
        (forged(2, 0, LINE * 2 + masks(0, 3) + gaps(5, 1)), "says otherwise of its pages"),
        (forged(0, 2, gaps(5, 0)), "names a page twice"),
        (forged(1, 1, LINE + masks(1) + gaps(9, 9)), "zero and that it is not"),
        (HEAD.pack(1, 0, 0, 0, 1, 1) + b"rubbish that is no zstd", "does not decompress"),
    ],
)
def test_odd_payloads_are_refused(payload: bytes, text: str) -> None:
    with pytest.raises(BadFrame, match=text):
        decode_pages(payload)


def test_a_frame_of_unknown_size_is_refused() -> None:
    body = zstandard.ZstdCompressor(write_content_size=False).compress(LINE + masks(1) + gaps(5))
    with pytest.raises(BadFrame, match="76 were announced"):
        decode_pages(HEAD.pack(1, 0, 0, 0, 1, 1) + body)


def test_every_truncation_is_refused() -> None:
    ram = np.random.default_rng(2).integers(0, 256, (2, PAGE_BYTES), np.uint8)
    for encoding in ("delta", "full"):
        (payload,) = encode_all(ram, blank(2), encoding).payloads
        for length in [*range(0, 200), *range(200, len(payload), 97), len(payload) - 1]:
            with pytest.raises(BadFrame):
                decode_pages(payload[:length])
        with pytest.raises(BadFrame):
            decode_pages(payload + b"x")


@given(st.binary(max_size=400))
def test_noise_is_refused_and_nothing_worse(noise: bytes) -> None:
    for payload in (noise, HEAD.pack(1, 0, 0, 3, 2, 2) + noise):
        with pytest.raises(BadFrame):
            decode_pages(payload)


def test_pages_outside_of_the_block_are_found_before_they_are_applied() -> None:
    decoded = decode_pages(forged(1, 1, LINE + masks(1) + gaps(9, 10)))
    decoded.require_within(11)
    with pytest.raises(BadFrame, match=r"page 10 is outside of RAM block 0 \(10 pages\)"):
        decoded.require_within(10)
    with pytest.raises(BadFrame, match="page 9 "):
        decode_pages(forged(1, 1, LINE + masks(1) + gaps(9, 3))).require_within(9)


def test_a_shadow_that_was_always_zero_stays_unallocated() -> None:
    """The initial sync of a mostly empty VM must not double its memory."""
    import resource

    shadow = np.zeros((50_000, PAGE_BYTES), np.uint8)
    ram = np.broadcast_to(np.zeros((1, PAGE_BYTES), np.uint8), shadow.shape)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    encode_pages(0, np.arange(len(ram)), ram, shadow, "delta")
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 100_000  # the shadow is 200 MB


def test_threads_have_their_own_buffers() -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        shadow, replica = blank(700), blank(700)
        for _ in range(10):
            ram = random.integers(0, 256, (700, PAGE_BYTES), np.uint8)
            apply(encode_all(ram, shadow).payloads, replica)
            if not np.array_equal(replica, ram):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_constants_fit_each_other() -> None:
    worst = pages.PAYLOAD_PAGES * (PAGE_BYTES + 8 + 4) + pages.PAYLOAD_ZEROS * 4
    assert worst + worst // 200 + 1024 < MAX_PAYLOAD
