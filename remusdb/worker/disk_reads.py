# SPDX-License-Identifier: Apache-2.0
"""Disk-read tracking on the primary: pages that the guest read from its disks go to the agent as references.

Owns the index of what stands on the replica's disks, and the word of the agent up to which epoch these are applied.

    silent ──the agent says what it has applied──▶ told ──another connection, or an empty ACK──▶ silent, index empty

Only told are references made. They are made of blocks whose last write the agent has applied, so it finds them at once,
whatever waits there. Threads: the writes are noted, and pages taken, by one at a time, epoch by epoch and the writes of
an epoch first; what the agent says comes from another one.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from remusdb.capture.cut import DirtyBlock
from remusdb.core.diskindex import DiskIndex
from remusdb.core.pagecache import PageCache
from remusdb.core.pages import PAYLOAD_PAGES
from remusdb.core.pages_encode import encode_full
from remusdb.core.references import Places, encode_references

REFERENCES_MAX = 4 * PAYLOAD_PAGES  # an epoch: so much memory it takes more on the agent, and here until its ACK
LEAST_LINES = 16  # of 64: where fewer changed, these are sent rather than have the agent read its disk
STEP_PAGES = 256  # that are remembered in one call


@dataclass(frozen=True)
class Referred:
    """One payload with references, and what is sent in its place where these are not wanted."""

    payload: bytes
    plain: bytes
    pages: int


class DiskReads:
    """Of one session."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """`sizes` of the replicated disks, in bytes."""
        self._index = DiskIndex(sizes, secrets.randbits(64))
        self._applied: int | None = None
        self._stale = False
        self._left = 0

    def told(self, applied: int | None) -> None:
        """The agent has applied the epochs up to this one; None: it takes no references."""
        self._applied = applied

    def forget(self) -> None:
        """The connection was lost: nothing is referred to any more that was written before."""
        self._applied, self._stale = None, True

    def note(self, raw: bytes, epoch: int) -> None:
        """What the disks' logs had for this epoch; 0: for the initial sync."""
        self._clear_if_stale()
        self._index.note(raw, epoch)

    def begin(self, epoch: int, writes: Sequence[bytes]) -> None:
        """An epoch with these writes; its pages follow."""
        self._left = REFERENCES_MAX
        for raw in writes:
            self.note(raw, epoch)

    def take(self, dirty: DirtyBlock, cache: PageCache | None) -> tuple[DirtyBlock, list[Referred]]:
        """The pages that go the ordinary way, and the references for the others, which `cache` then knows as well;
        None: every page is sent whole."""
        self._clear_if_stale()
        applied = self._applied
        if applied is None or not self._index.known or not len(dirty.numbers):
            return dirty, []
        rows, places = self._index.find(dirty.content, applied)
        if cache is not None:
            worth = cache.changed_lines(dirty.numbers[rows], dirty.content[rows]) >= LEAST_LINES
            rows, places = rows[worth], places[worth]
        rows, places = rows[: self._left], places[: self._left]
        if not len(rows):
            return dirty, []
        self._left -= len(rows)
        numbers, content = dirty.numbers[rows], dirty.content[rows]
        if cache is not None:
            for at in range(0, len(rows), STEP_PAGES):
                cache.remember(numbers[at : at + STEP_PAGES], content[at : at + STEP_PAGES])
        others = np.ones(len(dirty.numbers), np.bool_)
        others[rows] = False
        rest = DirtyBlock(dirty.block, dirty.numbers[others], dirty.content[others])
        return rest, list(_referred(dirty.block, numbers, content, places))

    def _clear_if_stale(self) -> None:
        if self._stale:
            self._stale = False
            self._index.clear()


def _referred(block: int, numbers: NDArray[np.int64], content: NDArray[np.uint8], places: Places) -> Sequence[Referred]:
    made = []
    for at in range(0, len(numbers), PAYLOAD_PAGES):
        part = slice(at, at + PAYLOAD_PAGES)
        (plain,) = encode_full(block, numbers[part], content[part]).payloads
        payload = encode_references(block, numbers[part], places[part], content[part])
        made.append(Referred(payload, plain, len(numbers[part])))
    return made
