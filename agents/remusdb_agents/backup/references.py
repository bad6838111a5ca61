# SPDX-License-Identifier: Apache-2.0
"""Pages that a primary sends as references to the replica's disks: read there, checked, and put in their place.

Done by the thread that receives, before the epoch can be whole: an epoch that is acknowledged needs no disk any more.
Invariant: what leaves here is the page that the primary meant, by its digest, or ReferenceRefused, upon which the
connection ends, and the session goes on with the pages themselves.

    taking  ──a reference is refused──▶ not taking any more in this session: ACKs have no payload
            ──the disks are slow──▶ resting, likewise, for RESTS times as long as they took ──▶ taking
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from remusdb.core.messages import Acked, pack
from remusdb.core.pagework import PAGE_BYTES, Bytes
from remusdb.core.references import Places, ReferenceRefused, decode_references, is_reference, place_of
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import BadFrame, DiskError

log = logging.getLogger(__name__)

RUN_BLOCKS = 64  # read at once: so long whoever applies may wait for it
SLOW_S = 0.25  # for one frame: an epoch's output waits for it
RESTS = 50  # so at most 2 % of the time goes to slow reads, and a busy moment does not end it for good
MOST_S = 1.0  # for one frame; the pages are here sooner when the primary sends them


class Disks(Protocol):
    """The replica's, as ReplicaImages has them."""

    sizes: list[int]

    def will_read(self, disk: int, offset: int, length: int) -> None:
        """Begin to read these bytes, and wait for nothing."""

    def read(self, disk: int, offset: int, length: int) -> memoryview:
        """What these bytes of a disk are now; DiskError."""


class References:
    """Of one VM, session by session. `follow` is for the thread that receives; the rest for any."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A new session."""
        self._takes, self._rests_until = True, 0.0

    def word(self, applied: int) -> bytes:
        """The payload of an ACK, when the disks have the writes up to this epoch."""
        return pack(Acked(applied)) if self._takes and monotonic() >= self._rests_until else b""

    def concern(self, frame: Frame) -> bool:
        """Whether this frame has pages that stand on a disk."""
        return frame.type is FrameType.PAGES and is_reference(frame.payload)

    def follow(self, frame: Frame, disks: Disks) -> Frame:
        """The frame with the pages themselves. BadFrame; ReferenceRefused where one is not on the disks."""
        began = monotonic()
        try:
            found = decode_references(frame.payload)
            found.require_within(disks.sizes)
            payload = found.filled(_read(found.places, disks))
        except (BadFrame, DiskError) as exc:
            self._takes = False
            log.warning("pages are not taken from the replica's disks any more: %s", exc)
            if isinstance(exc, BadFrame):
                raise
            raise ReferenceRefused(f"a block that a page was said to be cannot be read: {exc}") from exc
        now = monotonic()
        took_s = now - began
        if self._takes and took_s > SLOW_S:
            self._rests_until = now + RESTS * took_s
            log.warning(
                "pages took %.2f s to be read from the replica's disks: none are taken from there for %.0f s",
                took_s,
                RESTS * took_s,
            )
        return Frame(frame.type, frame.term, frame.epoch, payload)


def _read(places: Places, disks: Disks) -> Bytes:
    """The content of these blocks, (n, 4096): neighbours at once, and the kernel knows of all before the first."""
    blocks, which = np.unique(places, return_inverse=True)
    runs = [(*place_of(int(run[0])), len(run)) for run in _runs(blocks)]
    for disk, first, count in runs:
        disks.will_read(disk, first * PAGE_BYTES, count * PAGE_BYTES)
    content = np.empty((len(blocks), PAGE_BYTES), np.uint8)
    at, until = 0, monotonic() + MOST_S
    for disk, first, count in runs:
        if monotonic() > until:
            raise ReferenceRefused(f"the replica's disks are too slow: {at} of {len(blocks)} blocks in {MOST_S:g} s")
        data = disks.read(disk, first * PAGE_BYTES, count * PAGE_BYTES)
        content[at : at + count] = np.frombuffer(data, np.uint8).reshape(count, PAGE_BYTES)
        at += count
    return content[which]


def _runs(blocks: Places) -> list[NDArray[np.uint64]]:
    """These blocks, in order and none twice, as neighbours; at most RUN_BLOCKS each."""
    parts = np.split(blocks, np.flatnonzero(np.diff(blocks) != 1) + 1)
    return [part[at : at + RUN_BLOCKS] for part in parts for at in range(0, len(part), RUN_BLOCKS)]
