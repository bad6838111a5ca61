# SPDX-License-Identifier: Apache-2.0
"""From a cut to the frames of its epoch, while the VM runs on.

Owns the shadow: the last captured content of every RAM block, which the replica will hold too once it applied
the same frames in the same order. Memory: as much as the VM's touched RAM.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from remusdb.capture.cut import Cut, DirtyBlock
from remusdb.core.devices import encode_devices
from remusdb.core.messages import ADDRESSES_MAX, Commit, pack
from remusdb.core.pages import Encoding, encode_pages
from remusdb.core.wire import FrameType
from remusdb.core.writes import encode_writes
from remusdb.vm.ramblocks import PAGE_BYTES, Block


@dataclass(frozen=True)
class EpochFrames:
    """One epoch, ready to ship: (type, payload) in order, and what ends it. `stopped_at_ns`: of its cut."""

    epoch: int
    frames: list[tuple[FrameType, bytes]]
    commit: Commit
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

    def __init__(self, blocks: list[Block], encoding: Encoding) -> None:
        self._shadow = [np.zeros((block.pages, PAGE_BYTES), dtype=np.uint8) for block in blocks]
        self._encoding: Encoding = encoding
        self._devices = b""

    def pages(self, dirty: DirtyBlock, encoding: Encoding | None = None) -> list[bytes]:
        """PAGES payloads for one block."""
        shadow = self._shadow[dirty.block]
        return encode_pages(dirty.block, dirty.numbers, dirty.content, shadow, encoding or self._encoding).payloads

    def epoch(self, epoch: int, cut: Cut, writes: list[bytes], addresses: list[str], stays: bool) -> EpochFrames:
        """Everything of one epoch. `writes`: raw disk records, one item a disk; `stays`: see Commit."""
        frames = [(FrameType.WRITES, payload) for raw in writes if raw for payload in encode_writes(raw)]
        frames += [(FrameType.PAGES, payload) for dirty in cut.memory for payload in self.pages(dirty)]
        frames.append((FrameType.DEVICES, encode_devices(cut.devices, self._devices)))
        self._devices = cut.devices
        size = sum(len(payload) for _, payload in frames)
        commit = Commit(frames=len(frames), payload_bytes=size, addresses=addresses[:ADDRESSES_MAX], stays=stays)
        return EpochFrames(epoch, frames, commit, cut.stopped_at_ns)
