# SPDX-License-Identifier: Apache-2.0
"""From a cut to the frames of its epoch, while the VM runs on.

Owns the cache of what was sent: the last captured content of RAM, which the replica will hold too once it applied the
same frames in the same order. Memory: as much of the VM's RAM as `delta_cache_percent` says, and of that what was used.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from remusdb.capture.cut import Cut, DirtyBlock
from remusdb.core.devices import encode_devices
from remusdb.core.messages import ADDRESSES_MAX, Commit, pack
from remusdb.core.pagecache import PageCache
from remusdb.core.pages import Encoding
from remusdb.core.pages_encode import encode_full, encode_pages
from remusdb.core.wire import FrameType
from remusdb.core.writes import encode_writes
from remusdb.vm.ramblocks import Block


@dataclass(frozen=True)
class EpochFrames:
    """One epoch, ready to ship: (type, payload) in order, and what ends it. `stopped_at_ns`: of its cut."""

    epoch: int
    frames: list[tuple[FrameType, bytes]]
    commit: Commit
    cached: tuple[int, int] = (0, 0)  # pages of memory whose content before was known, of how many
    stopped_at_ns: int | None = None

    @property
    def payload_bytes(self) -> int:
        """Without the COMMIT."""
        return self.commit.payload_bytes

    def outgoing(self) -> Iterator[tuple[FrameType, bytes]]:
        """The frames, COMMIT last: it tells how old the cut is once all the rest was sent."""
        yield from self.frames
        age_ns = None if self.stopped_at_ns is None else time.monotonic_ns() - self.stopped_at_ns
        yield FrameType.COMMIT, pack(msgspec.structs.replace(self.commit, age_ns=age_ns))


class Encoder:
    """Frames of one session. Used by one thread at a time."""

    def __init__(self, blocks: list[Block], encoding: Encoding, cache_percent: int = 100) -> None:
        """`cache_percent`: of each block, so much is remembered."""
        self._caches = [PageCache(block.pages, -(-block.pages * cache_percent // 100)) for block in blocks]
        self._encoding: Encoding = encoding
        self._devices = b""

    def pages(self, dirty: DirtyBlock, encoding: Encoding | None = None) -> list[bytes]:
        """PAGES payloads for one block."""
        if (encoding or self._encoding) == "full":
            return encode_full(dirty.block, dirty.numbers, dirty.content).payloads
        return encode_pages(dirty.block, dirty.numbers, dirty.content, self._caches[dirty.block]).payloads

    def epoch(self, epoch: int, cut: Cut, writes: list[bytes], addresses: list[str], stays: bool) -> EpochFrames:
        """Everything of one epoch. `writes`: raw disk records, one item a disk; `stays`: see Commit."""
        before = self._counts()
        frames = [(FrameType.WRITES, payload) for raw in writes if raw for payload in encode_writes(raw)]
        frames += [(FrameType.PAGES, payload) for dirty in cut.memory for payload in self.pages(dirty)]
        frames.append((FrameType.DEVICES, encode_devices(cut.devices, self._devices)))
        self._devices = cut.devices
        size = sum(len(payload) for _, payload in frames)
        commit = Commit(frames=len(frames), payload_bytes=size, addresses=addresses[:ADDRESSES_MAX], stays=stays)
        known, asked = (now - then for now, then in zip(self._counts(), before, strict=True))
        return EpochFrames(epoch, frames, commit, (known, asked), cut.stopped_at_ns)

    def _counts(self) -> tuple[int, int]:
        return sum(cache.known for cache in self._caches), sum(cache.asked for cache in self._caches)
