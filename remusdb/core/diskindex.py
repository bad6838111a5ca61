# SPDX-License-Identifier: Apache-2.0
"""Which content stands where on the replica's disks: fed with the disks' write logs, asked for pages of memory.

Two tables of a fixed size, whatever the disks' sizes:

    by place     a block's slot is its number over all disks, modulo the slots: its tag, which block it is, and the
                 epoch whose writes made it. Of two blocks with one slot the later written one is known
    by content   a tag's place, likewise, in two tables by different bits of it: some 2 % of the blocks are lost where
                 all slots are used

A tag is xxh3-64 with a seed of the session's, a hint and no proof: what a reference stands for is decided by the digest
that it carries (core/references.py).

Invariant: what `find` gives for the pages of the newest epoch that was noted is, but for a tag's chance, the content of
that block on the replica's disks at that cut, and no write of an epoch after `applied` touches the block. So an agent
that has applied `applied` and not yet more than the newest finds it there, however far between the two it is. A block
that is written in part, zeroed or trimmed is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from remusdb.core.pagework import PAGE_BYTES, Bytes
from remusdb.core.references import DISK_SHIFT, Places
from remusdb.core.writes import Buffer, Kind, Record, iter_records

SLOTS_MAX: Final = 1 << 21  # blocks that are known: 8 GiB of disks, for 112 MiB of memory once all are used
SLOTS_MIN: Final = 1 << 14  # 1 MiB of memory
SPREAD: Final = 4  # times as many slots in each table by content: fewer tags are in each other's way
SECOND_BITS: Final = np.uint64(32)  # of a tag, from there on, for the second table
UNKNOWN: Final = -1

Epochs = NDArray[np.int64]


class DiskIndex:
    """Of one session. For one thread at a time."""

    def __init__(self, sizes: Sequence[int], seed: int, slots_max: int = SLOTS_MAX) -> None:
        """`sizes` of the disks, in bytes; `seed`: that no guest knows, 64 bits; `slots_max`: a power of two."""
        blocks = [size // PAGE_BYTES for size in sizes]
        self._first = np.array([0, *accumulate(blocks)], np.int64)  # of each disk, over all of them
        self._blocks = blocks
        self._seed = seed
        total = max(1, int(self._first[-1]))
        self._slots = min(slots_max, max(SLOTS_MIN, 1 << (total - 1).bit_length()))
        self.clear()

    def clear(self) -> None:
        """Nothing is known."""
        self._tag = np.zeros(self._slots, np.uint64)
        self._block = np.zeros(self._slots, np.int64)  # over all disks
        self._epoch: Epochs = np.full(self._slots, UNKNOWN, np.int64)
        self._at = [np.zeros(self._slots * SPREAD, np.int32) for _ in range(2)]  # slots by place
        self.known = False  # whether anything may be found

    def note(self, raw: Buffer, epoch: int) -> None:
        """These records are of that epoch (0: the initial sync). BadFrame where they are not whole records."""
        for record in iter_records(raw):
            if record.disk < len(self._blocks):
                self._note(record, epoch)

    def find(self, content: Bytes, applied: int) -> tuple[NDArray[np.int64], Places]:
        """Which of these pages (n, 4096) stand on a disk, as row numbers, and where, for an agent that has applied the
        epochs up to `applied`."""
        seed = self._seed
        tags = np.fromiter((xxh3_64_intdigest(page.data, seed) for page in content), np.uint64, len(content))
        first, second = (at[where] for at, where in zip(self._at, self._by_content(tags), strict=True))
        slots = np.where((self._tag[first] == tags) & (self._epoch[first] != UNKNOWN), first, second)
        epochs = self._epoch[slots]
        rows = np.flatnonzero((self._tag[slots] == tags) & (epochs != UNKNOWN) & (epochs <= applied))
        blocks = self._block[slots[rows]]
        disks = np.searchsorted(self._first, blocks, side="right") - 1
        return rows, (disks << DISK_SHIFT | blocks - self._first[disks]).astype(np.uint64)

    def _note(self, record: Record, epoch: int) -> None:
        begin, end, most = record.offset, record.offset + record.length, self._blocks[record.disk]
        touched = range(min(begin // PAGE_BYTES, most), min(-(-end // PAGE_BYTES), most))
        self._forget(int(self._first[record.disk]) + touched.start, len(touched))
        if record.kind is not Kind.WRITE:
            return
        whole = range(-(-begin // PAGE_BYTES), min(end // PAGE_BYTES, most))
        if whole:
            data = record.data[whole.start * PAGE_BYTES - begin : whole.stop * PAGE_BYTES - begin]
            self._learn(int(self._first[record.disk]) + whole.start, np.frombuffer(data, np.uint8), epoch)

    def _forget(self, first: int, count: int) -> None:
        """With them whatever else has their slots: less is known, nothing wrong."""
        begin = first % self._slots
        self._epoch[begin : begin + count] = UNKNOWN
        over = min(count, self._slots) - (self._slots - begin)
        if over > 0:
            self._epoch[:over] = UNKNOWN

    def _learn(self, first: int, data: Bytes, epoch: int) -> None:
        """Blocks that are not zero: a zero page is an index alone, and is never referred to."""
        pages = data.reshape(-1, PAGE_BYTES)
        kept = np.flatnonzero(pages.view(np.uint64).any(axis=1))
        seed = self._seed
        tags = np.fromiter((xxh3_64_intdigest(pages[row].data, seed) for row in kept), np.uint64, len(kept))
        blocks = first + kept
        slots = blocks % self._slots
        self._tag[slots], self._block[slots], self._epoch[slots] = tags, blocks, epoch
        for at, where in zip(self._at, self._by_content(tags), strict=True):
            at[where] = slots
        self.known = self.known or len(kept) > 0

    def _by_content(self, tags: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Where these tags are in each of the two tables."""
        mask = np.uint64(self._slots * SPREAD - 1)
        return tags & mask, tags >> SECOND_BITS & mask
