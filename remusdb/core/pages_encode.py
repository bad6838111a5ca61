# SPDX-License-Identifier: Apache-2.0
"""From captured pages to PAGES payloads; core/pages.py says what these hold, and reads them."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from remusdb.core.pagecache import PageCache
from remusdb.core.pages import CODES, GAP_BYTES, HEAD, MASK_BYTES, PAYLOAD_PAGES, PAYLOAD_ZEROS, Encoding
from remusdb.core.pagework import DATA, LINE_BYTES, PAGE_BYTES, SAME, ZERO, Bytes, delta
from remusdb.core.zstdframe import compress

_STEP = 256  # pages that are compared in one call


@dataclass(frozen=True)
class PagesEncoded:
    """What `encode_pages` made of the pages it was given."""

    payloads: list[bytes]
    pages: int  # given
    changed: int  # of these, sent in any form
    zero: int  # of these, sent as an index alone


class _PerThread(threading.local):
    """Work buffers: costly to make, of one thread each."""

    def __init__(self) -> None:
        self.kinds = np.empty(_STEP, np.uint8)
        self.masks = np.empty(PAYLOAD_PAGES, np.uint64)
        tail = PAYLOAD_PAGES * (MASK_BYTES + GAP_BYTES) + PAYLOAD_ZEROS * GAP_BYTES
        self.body = np.empty(PAYLOAD_PAGES * PAGE_BYTES + tail, np.uint8)


_mine = _PerThread()


def encode_pages(block: int, numbers: NDArray[np.int64], content: Bytes, cache: PageCache) -> PagesEncoded:
    """`delta` payloads for `content` (n, 4096), the pages `numbers` (n, strictly growing) of RAM block `block`, and
    `fresh` ones for those that are not in `cache`, which is brought up to date.

    ValueError for numbers that do not grow, or lie outside of the block.
    """
    if content.shape != (len(numbers), PAGE_BYTES):
        raise ValueError(f"{len(numbers)} page numbers with content {content.shape}")
    if len(numbers) and (numbers[0] < 0 or numbers[-1] >= cache.pages or (np.diff(numbers) <= 0).any()):
        raise ValueError(f"page numbers must grow, within the {cache.pages} pages of the block")
    rows, here = cache.find(numbers)
    if here.all():
        return _encode_delta(block, numbers, content, cache.content, rows)
    known = _encode_delta(block, numbers[here], content[here], cache.content, rows[here])
    batch = _Batch(block, "fresh")
    others = np.flatnonzero(~here)
    for at in range(0, len(others), _STEP):
        part = others[at : at + _STEP]
        batch.add(numbers[part], content[part], cache.content, cache.put(numbers[part]))
    fresh = batch.done(len(others))
    payloads = known.payloads + fresh.payloads
    return PagesEncoded(payloads, len(numbers), known.changed + fresh.changed, known.zero + fresh.zero)


class _Batch:
    """Collects the pages of one payload in this thread's buffers; full ones go to `payloads`."""

    def __init__(self, block: int, encoding: Encoding) -> None:
        self._encoding = encoding
        self.payloads: list[bytes] = []
        self.changed = self.zero = 0
        self._block = block
        self._clear()

    def add(self, numbers: NDArray[np.int64], content: Bytes, shadow: Bytes, rows: NDArray[np.int64]) -> None:
        """Take what changed of at most _STEP pages, whose shadow is in these rows."""
        if self._pages + len(numbers) > PAYLOAD_PAGES or self._zeros + len(numbers) > PAYLOAD_ZEROS:
            self.flush()
        kinds = _mine.kinds[: len(numbers)]
        room = _mine.body[self._lines * LINE_BYTES : PAYLOAD_PAGES * PAGE_BYTES]
        kept, lines = delta(rows, content, shadow, _mine.masks[self._pages :], room, kinds)
        if self._encoding == "fresh":
            kinds[kinds == SAME] = ZERO  # what the backup has there is not known
        if not kinds.any():  # the common case of the initial sync: zero against zero
            return
        zeros = numbers[kinds == ZERO]
        self._kept_numbers.append(numbers[kinds == DATA])
        self._zero_numbers.append(zeros)
        self._pages += kept
        self._lines += lines
        self._zeros += len(zeros)

    def flush(self) -> None:
        """Close the payload, if it holds anything."""
        if not self._pages + self._zeros:
            return
        end = self._lines * LINE_BYTES
        gaps = [to_gaps(np.concatenate(numbers)) for numbers in (self._kept_numbers, self._zero_numbers)]
        for raw in (_mine.masks[: self._pages].view(np.uint8), *(one.view(np.uint8) for one in gaps)):
            _mine.body[end : end + len(raw)] = raw
            end += len(raw)
        head = HEAD.pack(CODES[self._encoding], 0, self._block, self._zeros, self._pages, self._lines)
        self.payloads.append(head + compress(_mine.body[:end].data))
        self.changed += self._pages + self._zeros
        self.zero += self._zeros
        self._clear()

    def done(self, pages: int) -> PagesEncoded:
        """All of it; so many pages were given."""
        self.flush()
        return PagesEncoded(self.payloads, pages, self.changed, self.zero)

    def _clear(self) -> None:
        self._pages = self._zeros = self._lines = 0
        self._kept_numbers: list[NDArray[np.int64]] = []
        self._zero_numbers: list[NDArray[np.int64]] = []


def _encode_delta(
    block: int, numbers: NDArray[np.int64], content: Bytes, shadow: Bytes, rows: NDArray[np.int64]
) -> PagesEncoded:
    batch = _Batch(block, "delta")
    for at in range(0, len(numbers), _STEP):
        batch.add(numbers[at : at + _STEP], content[at : at + _STEP], shadow, rows[at : at + _STEP])
    return batch.done(len(numbers))


def encode_full(block: int, numbers: NDArray[np.int64], content: Bytes) -> PagesEncoded:
    """`full` payloads for the same: whole pages, as they are."""
    payloads = []
    for at in range(0, len(numbers), PAYLOAD_PAGES):
        part = numbers[at : at + PAYLOAD_PAGES]
        head = HEAD.pack(CODES["full"], 0, block, 0, len(part), 0)
        payloads.append(b"".join((head, content[at : at + len(part)].data, to_gaps(part).data)))
    return PagesEncoded(payloads, len(numbers), len(numbers), 0)


def to_gaps(numbers: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Page numbers as core/pages.py says."""
    return np.diff(numbers, prepend=0).astype(np.uint32)
