# SPDX-License-Identifier: Apache-2.0
"""With little memory for what was sent before, the replica is the same to the byte: what was forgotten goes whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from remusdb import native
from remusdb.capture.cut import Cut, DirtyBlock
from remusdb.core import pagecache
from remusdb.core.pagecache import PageCache
from remusdb.core.pages import decode_pages, resolve
from remusdb.core.pages_encode import encode_pages
from remusdb.core.pagework import PAGE_BYTES
from remusdb.core.wire import FrameType
from remusdb.vm.ramblocks import Block
from remusdb.worker.encoder import Encoder

Bytes = NDArray[np.uint8]


@pytest.fixture(params=["C", "numpy"], autouse=True, scope="module")
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    built = native.kernels
    assert built is not None, "remusdb/native was not built: tools/venv.sh says why"
    native.kernels = built if request.param == "C" else None
    yield
    native.kernels = built


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """So that few pages are many."""
    usual, pagecache.LEAST_PAGES = pagecache.LEAST_PAGES, 256
    yield
    pagecache.LEAST_PAGES = usual


def apply(payloads: list[bytes], ram: Bytes) -> None:
    for payload in payloads:
        decoded = decode_pages(payload)
        decoded.require_within(len(ram))
        ram[decoded.zero] = 0
        ram[decoded.numbers] = resolve(decoded, ram[decoded.numbers])


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 1200), st.integers(1, 1200))
def test_the_replica_follows_whatever_is_forgotten(seed: int, pages: int, room: int) -> None:
    random = np.random.default_rng(seed)
    ram, replica = np.zeros((2, pages, PAGE_BYTES), np.uint8)
    cache = PageCache(pages, room)
    for _ in range(8):
        touched = np.flatnonzero(random.random(pages) < random.random() ** 2)
        fate = random.integers(0, 4, len(touched))  # stays, becomes zero, one byte changes, all changes
        ram[touched[fate == 1]] = 0
        ram[touched[fate == 2], random.integers(0, PAGE_BYTES, np.count_nonzero(fate == 2))] += 1
        ram[touched[fate == 3]] = random.integers(0, 256, (np.count_nonzero(fate == 3), PAGE_BYTES))
        apply(encode_pages(0, touched, ram[touched], cache).payloads, replica)
        assert np.array_equal(replica, ram)
    assert len(cache.content) <= max(room, 256)


def test_what_was_used_last_is_kept() -> None:
    cache, blank = PageCache(4096, 256), np.zeros((200, PAGE_BYTES), np.uint8)
    hot = np.arange(200)
    encode_pages(0, hot, blank, cache)
    for low in range(200, 4000, 40):
        encode_pages(0, hot, blank, cache)
        cold = np.arange(low, low + 40)
        encode_pages(0, cold, blank[:40], cache)
    cache.asked = cache.known = 0
    encode_pages(0, hot, blank, cache)
    assert cache.known == cache.asked == 200, "pages of every epoch are not pushed out by those of one"


def test_a_forgotten_page_that_is_zero_now_is_told_so() -> None:
    """The backup may have anything there."""
    cache, replica = PageCache(1000, 256), np.full((1000, PAGE_BYTES), 7, np.uint8)
    numbers = np.arange(300)
    apply(encode_pages(0, numbers, np.zeros((300, PAGE_BYTES), np.uint8), cache).payloads, replica)
    assert not replica[:300].any() and (replica[300:] == 7).all()


def test_with_room_for_all_every_page_is_known() -> None:
    cache = PageCache(500, 500)
    encoded = encode_pages(0, np.arange(500), np.zeros((500, PAGE_BYTES), np.uint8), cache)
    assert not encoded.payloads and cache.known == 500


@pytest.mark.parametrize(("percent", "known"), [(100, 10), (1, 0)])
def test_an_epoch_tells_how_many_of_its_pages_were_known(percent: int, known: int) -> None:
    encoder = Encoder([Block("ram", 2000 * PAGE_BYTES, 0)], "delta", percent)
    dirty = DirtyBlock(0, np.arange(10), np.ones((10, PAGE_BYTES), np.uint8))
    frames = encoder.epoch(1, Cut(b"", [dirty]), [], [], stays=False)
    assert frames.cached == (known, 10)
    assert [kind for kind, _ in frames.frames] == [FrameType.PAGES, FrameType.DEVICES]
    assert encoder.epoch(2, Cut(b"", [dirty]), [], [], stays=False).cached == (10, 10)
