# SPDX-License-Identifier: Apache-2.0
"""The page kernels in C do what those in numpy do, bit by bit, and touch nothing beyond what they are given."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from remusdb import native
from remusdb.core import pagework
from remusdb.core.pagework import DATA, LINE_BYTES, LINES, PAGE_BYTES, SAME, ZERO

Bytes = NDArray[np.uint8]
GUARD = 0xA5


@pytest.fixture(scope="module")
def kernels() -> ModuleType:
    assert native.kernels is not None, "remusdb/native/kernels.c was not built: tools/venv.sh says why"
    return native.kernels


def guest(seed: int, count: int) -> tuple[NDArray[np.int64], Bytes, Bytes]:
    """Numbers, content and shadow of pages of which each had another fate."""
    random = np.random.default_rng(seed)
    shadow = random.integers(0, 3, (2 * count, PAGE_BYTES), np.uint8)
    shadow[random.random(len(shadow)) < 0.3] = 0
    numbers = np.flatnonzero(random.random(len(shadow)) < 0.5).astype(np.int64)
    content = shadow[numbers]
    fate = random.integers(0, 5, len(numbers))
    content[fate == 1] = 0
    for page in np.flatnonzero(fate == 2):
        content[page, random.integers(0, PAGE_BYTES, 3)] ^= np.uint8(1 + random.integers(0, 255))
    content[fate == 3] ^= 0xFF
    return numbers, content, shadow


def room(count: int) -> tuple[NDArray[np.uint64], Bytes, Bytes]:
    return np.zeros(count, np.uint64), np.zeros(count * PAGE_BYTES, np.uint8), np.zeros(count, np.uint8)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 200))
def test_both_find_the_same(seed: int, count: int) -> None:
    assert native.kernels is not None, "not built"
    numbers, content, shadow = guest(seed, count)
    before, mine, theirs = shadow.copy(), room(len(numbers)), room(len(numbers))
    other = shadow.copy()
    told = native.kernels.delta(numbers, content, shadow, *mine)
    assert told == pagework.delta_in_numpy(numbers, content, other, *theirs)
    assert np.array_equal(shadow, other) and np.array_equal(shadow[numbers], content)
    kept, filled = told
    assert np.array_equal(mine[0][:kept], theirs[0][:kept]) and np.array_equal(mine[2], theirs[2])
    assert np.array_equal(mine[1][: filled * LINE_BYTES], theirs[1][: filled * LINE_BYTES])
    masks, lines, kinds = mine[0][:kept], mine[1][: filled * LINE_BYTES], mine[2]
    changed = kinds != SAME
    assert np.array_equal(changed, (before[numbers] != content).any(axis=1))
    assert np.array_equal(kinds == ZERO, changed & ~content.any(axis=1))
    one, two = before[numbers[kinds == DATA]], before[numbers[kinds == DATA]]
    native.kernels.patch(masks, lines, one)
    pagework.patch_in_numpy(masks, lines, two)
    assert np.array_equal(one, two) and np.array_equal(one, content[kinds == DATA])


def test_nothing_is_written_beyond_what_is_said(kernels: ModuleType) -> None:
    """Content of which every line changed fills its room to the last byte, and not one more."""
    count = 3
    content = np.full((count, PAGE_BYTES), 7, np.uint8)
    shadow = np.zeros((count + 2, PAGE_BYTES), np.uint8)
    masks, lines, kinds = (
        np.zeros(count + 1, np.uint64),
        np.full(count * PAGE_BYTES + 64, GUARD, np.uint8),
        np.full(4, 9, np.uint8),
    )
    assert kernels.delta(np.array([1, 2, 3]), content, shadow, masks, lines, kinds) == (3, 3 * LINES)
    assert (lines[-64:] == GUARD).all() and masks[-1] == 0 and kinds.tolist() == [DATA] * 3 + [9]
    assert not shadow[[0, 4]].any() and (shadow[1:4] == 7).all()


@pytest.mark.parametrize("short", range(6))
def test_a_buffer_that_is_too_small_is_refused(kernels: ModuleType, short: int) -> None:
    given: list[NDArray[Any]] = [
        np.arange(4),
        np.ones((4, PAGE_BYTES), np.uint8),
        np.zeros((4, PAGE_BYTES), np.uint8),
        *room(4),
    ]
    given[short] = np.arange(5) if short == 0 else given[short][:-1]
    with pytest.raises(ValueError, match=r"are needed|page 3 of 3"):
        kernels.delta(*given)
    assert not given[2].any(), "the shadow was touched"


def test_a_page_beyond_the_shadow_is_refused(kernels: ModuleType) -> None:
    for number in (-1, 4, 2**62):
        with pytest.raises(ValueError, match="of 4"):
            kernels.delta(
                np.array([number]), np.ones(PAGE_BYTES, np.uint8), np.zeros(4 * PAGE_BYTES, np.uint8), *room(1)
            )


def test_a_patch_that_does_not_fit_is_refused(kernels: ModuleType) -> None:
    masks, pages = np.array([1, 6], np.uint64), np.zeros((2, PAGE_BYTES), np.uint8)
    with pytest.raises(ValueError, match="lines: 128 bytes, 192 are needed"):
        kernels.patch(masks, np.ones(128, np.uint8), pages)
    with pytest.raises(ValueError, match="pages: 4096 bytes, 8192 are needed"):
        kernels.patch(masks, np.ones(192, np.uint8), pages[:1])
    with pytest.raises(BufferError):
        kernels.patch(masks, np.ones(192, np.uint8), bytes(2 * PAGE_BYTES))
    assert not pages.any()
    kernels.patch(masks, np.ones(192, np.uint8), pages)
    assert np.flatnonzero(pages.any(axis=1)).tolist() == [0, 1] and pages.sum() == 192
