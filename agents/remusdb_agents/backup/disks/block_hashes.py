# SPDX-License-Identifier: Apache-2.0
"""What a new session's images hold already, and the thread that tells the primary, block by block.

Owns the images until every table is told: the primary sends nothing for them before. An image that was there is a base
as it is; a fresh one may begin as a copy of a quarantined disk. What became of that copy does not matter: the
hashes are of the image. Only an image that cannot be read is a failure.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence

from remusdb.core.blocks import BLOCK_BYTES, SEED_BITS, block_count, hash_table, zero_table
from remusdb.core.messages import Base, pack
from remusdb.core.wire import FrameType
from remusdb.errors import DiskError, PeerUnreachable, RemusError
from remusdb.threads import spawn
from remusdb.transport.stream import FrameStream
from remusdb_agents.backup.disks.base_copy import QuarantinedDisk, fill, fits
from remusdb_agents.backup.disks.images import ReplicaImages
from remusdb_agents.backup.disks.sparse import next_data, read

FRAME_BLOCKS = 1024  # hashes of 64 MiB, 16 KiB of payload: a frame now and then shows how far it is
STEP_BLOCKS = 64
JOIN_S = 2.0


class Bases:
    """One session's bases. `broken` is told when an image cannot be read."""

    def __init__(
        self, images: ReplicaImages, quarantined: Mapping[int, QuarantinedDisk], broken: Callable[[Exception], None]
    ) -> None:
        """`quarantined`: by the disk's index, a disk used if it fits and the image is fresh."""
        self.seed = secrets.randbits(SEED_BITS)
        self._images = images
        self._broken = broken
        self._sources = {
            disk: one for disk, one in quarantined.items() if not images.reused[disk] and fits(one, images.sizes[disk])
        }
        self._filled: set[int] = set()
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._told = [0] * len(images.sizes)  # blocks of each disk
        self._telling = False
        self._thread: threading.Thread | None = None
        self._stream: FrameStream | None = None

    @property
    def counts(self) -> list[int]:
        """For WELCOME: the blocks of each disk's base, 0 where there is none."""
        images = self._images
        return [
            block_count(size) if reused or disk in self._sources else 0
            for disk, (size, reused) in enumerate(zip(images.sizes, images.reused, strict=True))
        ]

    def tell(self, stream: FrameStream, term: int, told: Sequence[int]) -> None:
        """Send the tables, in a thread; WELCOME must have gone before. `told`: what the primary has, by disk, empty in
        a new session; in one that is resumed what was under way may be lost, so it is sent from there on."""
        known = [min(count, max(0, had)) for count, had in zip(self.counts, told, strict=False)]
        with self._changed:
            self._stream = stream
            self._told[: len(known)] = known
            self._changed.notify_all()
            if self._telling or not any(self._left()):
                return
            self._thread = spawn(self._run, term, name="bases")
            self._telling = True

    def close(self) -> None:
        """Touch the images no more. Idempotent."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is None or self._stream is None or self._thread is threading.current_thread():
            return
        self._thread.join(JOIN_S)
        if self._thread.is_alive():  # perhaps in a send to a primary that does not read
            self._stream.close()
            self._thread.join()

    def _left(self) -> list[int]:
        return [count - told for count, told in zip(self.counts, self._told, strict=True)]

    def _run(self, term: int) -> None:
        try:
            while (turn := self._turn()) is not None:
                stream, disk, first = turn
                try:
                    stream.send(FrameType.BASE, term, 0, pack(Base(disk, first, self._hashes(disk, first))))
                except PeerUnreachable:  # whoever receives on this stream notices, too
                    self._await_other(stream)
        except Exception as exc:  # task boundary: the primary waits for these tables
            self._images.spoiled = True
            if not self._stop.is_set():
                self._broken(exc if isinstance(exc, RemusError) else DiskError(f"replica disk cannot be read: {exc}"))

    def _turn(self) -> tuple[FrameStream, int, int] | None:
        """The next part to tell, taken as told: a `tell` that comes later knows better. None: all is told, or over."""
        with self._changed:
            disk = next((disk for disk, left in enumerate(self._left()) if left), None)
            if disk is None or self._stop.is_set():
                self._telling = False
                return None
            first = self._told[disk]
            self._told[disk] = min(first + FRAME_BLOCKS, self.counts[disk])
            assert self._stream is not None
            return self._stream, disk, first

    def _await_other(self, stream: FrameStream) -> None:
        """The connection is lost: go on with the next one."""
        with self._changed:
            self._changed.wait_for(lambda: self._stream is not stream or self._stop.is_set())

    def _hashes(self, disk: int, first: int) -> bytes:
        path, size = self._images.paths[disk], self._images.sizes[disk]
        if disk in self._sources and disk not in self._filled:
            fill(path, size, self._sources[disk], self._images.room(), self._stop)
            self._filled.add(disk)
        with self._images.open_to_read(disk) as image:
            return table(image.fileno(), first, min(FRAME_BLOCKS, self.counts[disk] - first), size, self.seed)


def table(image: int, first: int, count: int, size: int, seed: int) -> bytes:
    """The hashes of these blocks of a file of `size` bytes. Holes are not read."""
    parts, at, end = [], first, first + count
    while at < end:
        data = next_data(image, at * BLOCK_BYTES, size)
        data = end if data >= size else min(data // BLOCK_BYTES, end)
        if data > at:
            parts.append(zero_table(at, data - at, size, seed))
            at = data
            continue
        step = min(STEP_BLOCKS, end - at)
        parts.append(hash_table(read(image, at * BLOCK_BYTES, min(step * BLOCK_BYTES, size - at * BLOCK_BYTES)), seed))
        at += step
    return b"".join(parts)
