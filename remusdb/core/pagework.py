# SPDX-License-Identifier: Apache-2.0
"""Pages against their shadow, in lines of 64 bytes: what changed, and how to change it there too.

Each of the two functions is there in C (`native/kernels.c`, which is used where it was built) and in numpy, which is
how it is meant: the tests hold one against the other. A page of a database changes in a few of its 64 lines, and what
did not change need not be compressed, sent, decompressed and XORed.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from remusdb import native

PAGE_BYTES = 4096
LINE_BYTES = 64
LINES = PAGE_BYTES // LINE_BYTES
SAME, DATA, ZERO = 0, 1, 2  # what became of a page: nothing; other content; zero in all its bytes
_STEP = 64  # pages that numpy works on at once: 256 KiB each of content, shadow and XOR stay in the cache
_WORDS: Final = LINE_BYTES // 8

Bytes = NDArray[np.uint8]
Masks = NDArray[np.uint64]  # bit i: line i of the page changed


def delta(
    numbers: NDArray[np.int64], content: Bytes, shadow: Bytes, masks: Masks, lines: Bytes, kinds: Bytes
) -> tuple[int, int]:
    """Compares `content` (n, 4096) with the rows `numbers` (n, none twice) of `shadow` (rows, 4096), and brings that up
    to date.

    Of each page `kinds` (n) gets SAME, DATA or ZERO. Of those that are DATA, in order, `masks` gets the lines that
    changed, and `lines` their XOR with what was there. Both need room for n pages. How many of each were written.
    """
    if native.kernels is not None and all(array.flags.c_contiguous for array in (numbers, content, shadow)):
        return native.kernels.delta(numbers, content, shadow, masks, lines, kinds)  # type: ignore[no-any-return]
    return delta_in_numpy(numbers, content, shadow, masks, lines, kinds)


def patch(masks: Masks, lines: Bytes, pages: Bytes) -> None:
    """XORs `lines` into `pages` (n, 4096), where `masks` (n) has them. The bits of all masks are as many as lines."""
    if native.kernels is not None:
        native.kernels.patch(masks, lines, pages)
    else:
        patch_in_numpy(masks, lines, pages)


def delta_in_numpy(
    numbers: NDArray[np.int64], content: Bytes, shadow: Bytes, masks: Masks, lines: Bytes, kinds: Bytes
) -> tuple[int, int]:
    """`delta`, and what it means."""
    kept = filled = 0
    rows = lines.view(np.uint64).reshape(-1, _WORDS)
    for at in range(0, len(numbers), _STEP):
        which, new = numbers[at : at + _STEP], content[at : at + _STEP].view(np.uint64)
        old = _rows_of(shadow, which).view(np.uint64)
        xor = np.bitwise_xor(new, old).reshape(-1, LINES, _WORDS)
        changed = np.bitwise_or.reduce(xor, axis=2) != 0
        differs = changed.any(axis=1)
        blank = differs & (np.bitwise_or.reduce(new, axis=1) == 0)
        kinds[at : at + _STEP] = np.where(blank, ZERO, np.where(differs, DATA, SAME))
        found = xor[changed & ~blank[:, None]]
        rows[filled : filled + len(found)] = found
        mask = np.packbits(changed[differs & ~blank], axis=1, bitorder="little").view(np.uint64).ravel()
        masks[kept : kept + len(mask)] = mask
        kept, filled = kept + len(mask), filled + len(found)
        # Not the unchanged ones: the shadow of a page that was always zero is never even allocated.
        shadow[which[differs]] = content[at : at + _STEP][differs]
    return kept, filled


def patch_in_numpy(masks: Masks, lines: Bytes, pages: Bytes) -> None:
    """`patch`, and what it means."""
    found = bits(masks)
    rows = pages.view(np.uint64).reshape(-1, _WORDS)
    rows[found] ^= lines.view(np.uint64).reshape(-1, _WORDS)


def bits(masks: Masks) -> NDArray[np.bool_]:
    """Of each line of each page, whether the masks have it."""
    return np.unpackbits(masks.view(np.uint8), bitorder="little").astype(np.bool_)


def _rows_of(shadow: Bytes, numbers: NDArray[np.int64]) -> Bytes:
    """The shadow of these pages: a view where they are neighbours, else a copy."""
    first = int(numbers[0])
    return shadow[first : first + len(numbers)] if (np.diff(numbers) == 1).all() else shadow[numbers]
