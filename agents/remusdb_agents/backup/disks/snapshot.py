# SPDX-License-Identifier: Apache-2.0
"""A replica's disks as they were at one moment, read while later epochs are applied to them.

A block that is about to be overwritten and was not read yet is put by first, in memory: whoever applies waits for one
read of it, and never for the reader. What is put by has a bound; over it the snapshot is broken, not the applier.

    left ──read──▶ done                 every block of 64 KiB, once
      └─overwritten──▶ saved ──read──▶ done

Invariant: what `next` gives, and zeroes everywhere else, is each disk at the moment of the snapshot, or it raises.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from remusdb.errors import DiskError, RemusError
from remusdb_agents.backup.disks.sparse import next_data, read

BLOCK_BYTES = 64 << 10
STEP_BLOCKS = 4  # read at once: so long whoever applies may wait for the reader


@dataclass(frozen=True)
class Piece:
    """Bytes of a disk. The same byte never comes twice."""

    disk: int
    offset: int
    data: memoryview


class Snapshot:
    """One of them. `lock` is the one under which the files are written and closed; `before` is called with it held."""

    def __init__(self, lock: threading.Lock, files: Sequence[int], sizes: Sequence[int], most_bytes: int) -> None:
        """`files`: descriptors of the disks, `sizes` their bytes; `most_bytes`: what may be put by."""
        self._lock = lock
        self._files, self._sizes = list(files), list(sizes)
        self._left = [np.ones(-(-size // BLOCK_BYTES), dtype=bool) for size in sizes]
        self._at = [0] * len(sizes)  # no block before this one is left
        self._saved: list[Piece] = []
        self._saved_bytes = 0
        self._most_bytes = most_bytes
        self._broken: RemusError | None = None
        self.put_by_bytes = 0  # in all, for whoever wants to know what it cost

    def next(self) -> Piece | None:
        """The next bytes in no order; None: that was all. RemusError when it was broken."""
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if self._saved:
                piece = self._saved.pop()
                self._saved_bytes -= len(piece.data)
                return piece
            for disk in range(len(self._files)):
                if (run := self._run(disk)) is not None:
                    return self._read(disk, *run)
            return None

    def before(self, disk: int, offset: int, length: int) -> None:
        """These bytes are about to be overwritten. Whatever fails breaks the snapshot, and nothing else."""
        if self._broken is not None or not length:
            return
        try:
            self._save(disk, offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES))
        except OSError as exc:
            self.break_off(DiskError(f"replica disk cannot be read: {exc}"))

    def break_off(self, why: RemusError) -> None:
        """What is not read yet will not be. With the lock held."""
        self._broken = self._broken or why
        self._saved.clear()
        self._saved_bytes = 0

    def _save(self, disk: int, first: int, end: int) -> None:
        left = self._left[disk]
        blocks = [first + int(number) for number in np.flatnonzero(left[first:end])]
        left[first:end] = False
        file, size = self._files[disk], self._sizes[disk]
        data_at = -1  # no block before this byte has data
        for block in blocks:
            at = block * BLOCK_BYTES
            if data_at < at + BLOCK_BYTES:
                data_at = next_data(file, at, size)
            if data_at >= at + BLOCK_BYTES:
                continue
            if self._saved_bytes + BLOCK_BYTES > self._most_bytes:
                return self.break_off(_too_fast(self._most_bytes))
            piece = self._read_blocks(disk, block, block + 1)
            self._saved.append(piece)
            self._saved_bytes += len(piece.data)
            self.put_by_bytes += len(piece.data)

    def _run(self, disk: int) -> tuple[int, int] | None:
        """First and end of the next blocks with data that are left, a few at most."""
        left, size = self._left[disk], self._sizes[disk]
        while self._at[disk] < len(left):
            at = self._at[disk]
            at += int(np.argmax(left[at:])) if left[at:].any() else len(left) - at
            data = min(next_data(self._files[disk], at * BLOCK_BYTES, size), size)
            first = data // BLOCK_BYTES if data < size else len(left)
            left[at:first] = False  # holes: zeroes, then as now
            self._at[disk] = max(at, first)
            if first <= at < len(left):
                taken = left[at : at + STEP_BLOCKS]
                return at, at + (len(taken) if taken.all() else int(np.argmin(taken)))
        return None

    def _read(self, disk: int, first: int, end: int) -> Piece:
        self._left[disk][first:end] = False
        self._at[disk] = end
        try:
            return self._read_blocks(disk, first, end)
        except OSError as exc:
            raise DiskError(f"replica disk cannot be read: {exc}") from exc

    def _read_blocks(self, disk: int, first: int, end: int) -> Piece:
        at = first * BLOCK_BYTES
        return Piece(disk, at, read(self._files[disk], at, min(end * BLOCK_BYTES, self._sizes[disk]) - at))


def _too_fast(most_bytes: int) -> DiskError:
    return DiskError(
        f"the guest overwrites its disks faster than they are copied: {most_bytes >> 20} MiB wait in memory",
        hint="protection goes on; try again when the VM writes less, or to a faster disk",
    )
