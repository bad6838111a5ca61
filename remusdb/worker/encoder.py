# SPDX-License-Identifier: Apache-2.0
"""From a cut to the frames of its epoch, while the VM runs on.

Owns the cache of what was sent: the last captured content of RAM, which the replica will hold too once it applied the
same frames in the same order. Memory: as much of the VM's RAM as `delta_cache_percent` says, and of that what was used.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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
from remusdb.worker.disk_reads import DiskReads, Referred


@dataclass(frozen=True)
class EpochFrames:
    """One epoch, ready to ship: (type, payload) in order, and what ends it. `stopped_at_ns`: of its cut."""

    epoch: int
    frames: list[tuple[FrameType, bytes]]
    commit: Commit
    cached: tuple[int, int] = (0, 0)  # pages of memory whose content before was known, of how many
    stopped_at_ns: int | None = None
    plain: dict[int, bytes] = field(default_factory=dict)  # what stands for the frames with references, by their place
    referred: tuple[int, int] | None = None  # pages that are sent as references, of how many; None: none may be

    def without_references(self) -> EpochFrames:
        """The same epoch with every page itself in it."""
        if not self.plain:
            return self
        frames = [(kind, self.plain.get(at, payload)) for at, (kind, payload) in enumerate(self.frames)]
        commit = msgspec.structs.replace(self.commit, payload_bytes=_size(frames))
        return dataclasses.replace(self, frames=frames, commit=commit, plain={})

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

    def __init__(
        self, blocks: list[Block], encoding: Encoding, cache_percent: int = 100, reads: DiskReads | None = None
    ) -> None:
        """`cache_percent`: of each block, so much is remembered. `reads`: makes references."""
        self._reads = reads
        self._caches = [PageCache(block.pages, -(-block.pages * cache_percent // 100)) for block in blocks]
        self._encoding: Encoding = encoding
        self._devices = b""

    def pages(self, dirty: DirtyBlock, encoding: Encoding | None = None) -> list[bytes]:
        """PAGES payloads for one block."""
        if (encoding or self._encoding) == "full":
            return encode_full(dirty.block, dirty.numbers, dirty.content).payloads
        return encode_pages(dirty.block, dirty.numbers, dirty.content, self._caches[dirty.block]).payloads

    def epoch(
        self,
        epoch: int,
        cut: Cut,
        writes: list[bytes],
        addresses: list[str],
        stays: bool,
        open_flows: Sequence[bytes] = (),
    ) -> EpochFrames:
        """Everything of one epoch. `writes`: raw disk records, one item a disk; `stays`, `open_flows`: see Commit."""
        before = self._counts()
        frames = [(FrameType.WRITES, payload) for raw in writes if raw for payload in encode_writes(raw)]
        memory, referred = self._referred(epoch, cut, writes)
        plain = {len(frames) + at: one.plain for at, one in enumerate(referred)}
        frames += [(FrameType.PAGES, one.payload) for one in referred]
        frames += [(FrameType.PAGES, payload) for dirty in memory for payload in self.pages(dirty)]
        frames.append((FrameType.DEVICES, encode_devices(cut.devices, self._devices)))
        self._devices = cut.devices
        commit = Commit(len(frames), _size(frames), addresses[:ADDRESSES_MAX], stays=stays, open_flows=list(open_flows))
        known, asked = (now - then for now, then in zip(self._counts(), before, strict=True))
        pages = (sum(one.pages for one in referred), cut.pages) if self._reads is not None else None
        return EpochFrames(epoch, frames, commit, (known, asked), cut.stopped_at_ns, plain, pages)

    def _referred(self, epoch: int, cut: Cut, writes: list[bytes]) -> tuple[list[DirtyBlock], list[Referred]]:
        """The pages that are to be encoded, and the references for the others."""
        if self._reads is None:
            return cut.memory, []
        self._reads.begin(epoch, writes)
        parted = [self._reads.take(dirty, self._cache_of(dirty.block)) for dirty in cut.memory]
        return [rest for rest, _ in parted], [one for _, found in parted for one in found]

    def _cache_of(self, block: int) -> PageCache | None:
        """What an epoch's pages are compared with; None: they go whole."""
        return self._caches[block] if self._encoding == "delta" else None

    def _counts(self) -> tuple[int, int]:
        return sum(cache.known for cache in self._caches), sum(cache.asked for cache in self._caches)


def _size(frames: list[tuple[FrameType, bytes]]) -> int:
    return sum(len(payload) for _, payload in frames)
