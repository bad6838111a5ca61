# SPDX-License-Identifier: Apache-2.0
"""Pages that stand on a replicated disk, as PAGES payloads of their own kind: where on the disk, and a digest.

    payload  head of core/pages.py with encoding 4, no zero pages and no lines; then the body, as it is:
    body     data pages x 16 bytes, BLAKE2b-128 of each page; data pages x u64, where it stands; gaps of their numbers
    where    the disk's index in the highest byte, below it the number of the block of 4096 bytes

What a reference stands for is decided by its digest alone: the agent takes a block whose digest is the page's, or
refuses. Where the block is said to be is a hint, which a hostile or mistaken primary may get wrong at no harm.
BLAKE2b is made to withstand whoever wants two contents of one digest; a guest might, and xxh3 is not.

A payload with references is exchanged for one without as soon as it is here (`filled`): no other code knows of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from remusdb.core.pages import CODES, GAP_BYTES, HEAD, PAYLOAD_PAGES
from remusdb.core.pages_encode import encode_full, to_gaps
from remusdb.core.pagework import PAGE_BYTES, Bytes
from remusdb.errors import BadFrame

CODE: Final = 4
DIGEST_BYTES: Final = 16
PLACE_BYTES: Final = 8
DISK_SHIFT: Final = 56
_BLOCK_MASK: Final = (1 << DISK_SHIFT) - 1

assert CODE not in CODES.values()

Buffer = bytes | bytearray | memoryview
Places = NDArray[np.uint64]


class ReferenceRefused(BadFrame):
    """A block is not what a reference says, or is on no disk. The page itself has to be sent."""


@dataclass(frozen=True)
class References:
    """One payload: each of the pages `numbers` (n, strictly growing) of a RAM block is a block of a disk."""

    block: int
    numbers: NDArray[np.int64]
    places: Places
    digests: Bytes  # (n, DIGEST_BYTES)

    def require_within(self, sizes: Sequence[int]) -> None:
        """ReferenceRefused unless every place is a whole block of one of the disks, of so many bytes each."""
        for place in np.unique(self.places):
            disk, block = place_of(int(place))
            if disk >= len(sizes) or (block + 1) * PAGE_BYTES > sizes[disk]:
                raise ReferenceRefused(f"a page is said to be block {block} of disk {disk}, which is not there")

    def filled(self, content: Bytes) -> bytes:
        """The same pages as a `full` payload. `content` (n, 4096); ReferenceRefused where it is not what was meant."""
        for page, wanted, place in zip(content, self.digests, self.places, strict=True):
            if digest(page.data) != wanted.tobytes():
                disk, block = place_of(int(place))
                raise ReferenceRefused(f"block {block} of disk {disk} is not the page that was referred to")
        (payload,) = encode_full(self.block, self.numbers, content).payloads
        return payload


def digest(page: Buffer) -> bytes:
    """What a page is known by: 16 bytes."""
    return hashlib.blake2b(page, digest_size=DIGEST_BYTES).digest()


def place_of(place: int) -> tuple[int, int]:
    """The disk's index, and the block's number on it."""
    return place >> DISK_SHIFT, place & _BLOCK_MASK


def encode_references(block: int, numbers: NDArray[np.int64], places: Places, content: Bytes) -> bytes:
    """The payload for these pages, at least one and at most PAYLOAD_PAGES. `content` (n, 4096): what they hold."""
    if not 0 < len(numbers) <= PAYLOAD_PAGES:
        raise ValueError(f"{len(numbers)} references in one payload")
    digests = b"".join(digest(page.data) for page in content)
    head = HEAD.pack(CODE, 0, block, 0, len(numbers), 0)
    return b"".join((head, digests, places.astype("<u8").tobytes(), to_gaps(numbers).tobytes()))


def is_reference(payload: Buffer) -> bool:
    """Whether a PAGES payload is of this kind; `decode_references` then says whether it is well formed."""
    return len(payload) > 0 and memoryview(payload).cast("B")[0] == CODE


def decode_references(payload: Buffer) -> References:
    """What such a payload holds. BadFrame, before anything of a wrong size is made, if it is not well formed."""
    view = memoryview(payload).cast("B")
    if len(view) < HEAD.size:
        raise BadFrame(f"a PAGES payload of {len(view)} bytes has no head")
    code, zero_byte, block, zeros, pages, lines = HEAD.unpack_from(view)
    if code != CODE or zero_byte or zeros or lines or not 0 < pages <= PAYLOAD_PAGES:
        raise BadFrame(f"a PAGES payload cannot hold {pages} references ({code}, {zero_byte}, {zeros}, {lines})")
    if len(view) != HEAD.size + pages * (DIGEST_BYTES + PLACE_BYTES + GAP_BYTES):
        raise BadFrame(f"a PAGES payload of {len(view)} bytes cannot hold {pages} references")
    body = np.frombuffer(view[HEAD.size :], np.uint8)
    digests, places, gaps = np.split(body, [pages * DIGEST_BYTES, pages * (DIGEST_BYTES + PLACE_BYTES)])
    gaps = gaps.view(np.uint32)
    if (gaps[1:] == 0).any():
        raise BadFrame("a PAGES payload names a page twice")
    numbers = np.cumsum(gaps, dtype=np.int64)
    return References(block, numbers, places.view(np.uint64), digests.reshape(pages, DIGEST_BYTES))
