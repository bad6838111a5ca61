# SPDX-License-Identifier: Apache-2.0
"""What was sent last of the pages of one RAM block: of all, or of as many as there is room for, the latest used.

A page that is here is sent as what changed in it. One that is not is sent whole, and pushes out what was not used for
the longest time. Bounded by its room: 4 KiB a page, and some bytes a page of the block to find it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from remusdb.core.pagework import LINE_BYTES, LINES, PAGE_BYTES, Bytes

LEAST_PAGES = 1024  # room is never less than that: several steps of the encoder
EVICTED_SHARE = 16  # one in so many goes at a time: looking for the oldest takes longer than to push them out

Slots = NDArray[np.int64]  # rows of `content`


class PageCache:
    """For one thread."""

    def __init__(self, pages: int, room: int) -> None:
        """Of a block of so many pages, which are zero on both sides at first; known if there is room for all."""
        self.pages = pages
        room = min(pages, max(room, LEAST_PAGES))
        self.content: Bytes = np.zeros((room, PAGE_BYTES), np.uint8)  # not touched: no memory
        self.asked = self.known = 0  # pages that were looked for, and were here
        self._bounded = room < pages
        if self._bounded:
            self._slot_of = np.full(pages, -1, np.int32 if room < 1 << 31 else np.int64)
            self._page_of = np.full(room, -1, np.int64)
            self._used = np.zeros(room, np.int64)
            self._turn = 0
            self._free: Slots = np.arange(room)

    def find(self, numbers: NDArray[np.int64]) -> tuple[Slots, NDArray[np.bool_]]:
        """Where these pages are, and which of them are here at all."""
        slots, here = self._find(numbers)
        self.asked += len(numbers)
        self.known += int(np.count_nonzero(here))
        return slots, here

    def changed_lines(self, numbers: NDArray[np.int64], content: Bytes) -> NDArray[np.int64]:
        """In how many of their lines these pages, with this content (n, 4096), are not what they were; of one that is
        not here, all."""
        slots, here = self._find(numbers)
        lines = np.full(len(numbers), LINES, np.int64)
        differ = content[here].view(np.uint64) != self.content[slots[here]].view(np.uint64)
        lines[here] = differ.reshape(-1, LINES, LINE_BYTES // 8).any(axis=2).sum(axis=1)
        return lines

    def remember(self, numbers: NDArray[np.int64], content: Bytes) -> None:
        """These pages, at most LEAST_PAGES, were sent in another way: what they hold now (n, 4096)."""
        slots, here = self._find(numbers)
        self.content[slots[here]] = content[here]
        if not here.all():
            self.content[self.put(numbers[~here])] = content[~here]

    def put(self, numbers: NDArray[np.int64]) -> Slots:
        """Room for pages that are not here, at most LEAST_PAGES at once: where. It is zero, as if they had been so."""
        if len(self._free) < len(numbers):
            self._evict(max(len(numbers) - len(self._free), len(self._page_of) // EVICTED_SHARE))
        slots, self._free = self._free[: len(numbers)], self._free[len(numbers) :]
        self._slot_of[numbers] = slots
        self._page_of[slots] = numbers
        self._used[slots] = self._turn
        self.content[slots] = 0
        return slots

    def _find(self, numbers: NDArray[np.int64]) -> tuple[Slots, NDArray[np.bool_]]:
        if not self._bounded:
            return numbers, np.ones(len(numbers), np.bool_)
        slots = self._slot_of[numbers].astype(np.int64)
        here = slots >= 0
        self._turn += 1
        self._used[slots[here]] = self._turn
        return slots, here

    def _evict(self, count: int) -> None:
        """Make room for `count` pages: those that were not used for the longest time."""
        taken = np.flatnonzero(self._page_of >= 0)
        count = min(count, len(taken))
        oldest = taken[np.argpartition(self._used[taken], count - 1)[:count]]
        self._slot_of[self._page_of[oldest]] = -1
        self._page_of[oldest] = -1
        self._free = np.concatenate((self._free, oldest))
