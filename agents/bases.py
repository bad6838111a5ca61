# SPDX-License-Identifier: Apache-2.0
"""What a new session's images hold already, and the thread that tells the primary, block by block.

Owns the images until every table is told: the primary sends nothing for them before. An image that was there is a base
as it is; a fresh one may begin as a copy of a disk that was kept aside. What became of that copy does not matter: the
hashes are of the image. Only an image that cannot be read is a failure.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from remusdb.core.blocks import BLOCK_BYTES, SEED_BITS, block_count, hash_table, zero_table
from remusdb.core.messages import Base, pack
from remusdb.core.wire import FrameType
from remusdb.errors import DiskError, PeerUnreachable, RemusError
from remusdb.transport.stream import FrameStream
from remusdb_agents.images import ReplicaImages
from remusdb_agents.kept import fill, usable_format
from remusdb_agents.sparse import next_data, opened, read

FRAME_BLOCKS = 1024  # hashes of 64 MiB, 16 KiB of payload: a frame now and then shows how far it is
STEP_BLOCKS = 64
JOIN_S = 2.0


class Bases:
    """One session's bases. `broken` is told when an image cannot be read."""

    def __init__(self, images: ReplicaImages, kept: Mapping[int, Path], broken: Callable[[Exception], None]) -> None:
        """`kept`: by the disk's index, a disk that was kept aside. It is used if it fits and the image is fresh."""
        self.seed = secrets.randbits(SEED_BITS)
        self._images = images
        self._broken = broken
        self._formats = {
            disk: found
            for disk, path in kept.items()
            if not images.reused[disk] and (found := usable_format(path, images.sizes[disk]))
        }
        self._kept = kept
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._stream: FrameStream | None = None

    @property
    def counts(self) -> list[int]:
        """For WELCOME: the blocks of each disk's base, 0 where there is none."""
        images = self._images
        return [
            block_count(size) if reused or disk in self._formats else 0
            for disk, (size, reused) in enumerate(zip(images.sizes, images.reused, strict=True))
        ]

    def tell(self, stream: FrameStream, term: int) -> None:
        """Begin to send the tables, in a thread; WELCOME must have gone before."""
        self._stream = stream
        self._thread = threading.Thread(target=self._run, args=(stream, term), name="bases", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Touch the images no more. Idempotent."""
        self._stop.set()
        if self._thread is None or self._stream is None or self._thread is threading.current_thread():
            return
        self._thread.join(JOIN_S)
        if self._thread.is_alive():  # perhaps in a send to a primary that does not read
            self._stream.close()
            self._thread.join()

    def _run(self, stream: FrameStream, term: int) -> None:
        try:
            for disk, count in enumerate(self.counts):
                if count:
                    self._tell(disk, count, stream, term)
        except PeerUnreachable:
            return  # whoever receives on this stream notices, too
        except Exception as exc:  # task boundary: the primary waits for these tables
            self._images.spoiled = True
            if not self._stop.is_set():
                self._broken(exc if isinstance(exc, RemusError) else DiskError(f"replica disk cannot be read: {exc}"))

    def _tell(self, disk: int, count: int, stream: FrameStream, term: int) -> None:
        path, size = self._images.paths[disk], self._images.sizes[disk]
        if disk in self._formats:
            fill(path, size, self._kept[disk], self._formats[disk], self._images.room(), self._stop)
        with opened(path, os.O_RDONLY) as image:
            for first in range(0, count, FRAME_BLOCKS):
                if self._stop.is_set():
                    return
                hashes = table(image, first, min(FRAME_BLOCKS, count - first), size, self.seed)
                stream.send(FrameType.BASE, term, 0, pack(Base(disk, first, hashes)))


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
