# SPDX-License-Identifier: Apache-2.0
"""The initial sync of a disk onto an older image: what the backup has already is not sent.

QEMU writes the whole disk to its mirror. The filter here stands between that log and the wire, and hides from both that
the image is not new and empty. Each block is in one of these states:

    SAME    the image's block is what the log has made of it: nothing is owed
    ZERO    the log has made zeros of it, if only because an image is empty at first; the image's block is not zero
    SHIPPED something was sent for it: from then on everything is sent, as it comes

Invariant: with `rest` after all that `reduce` returned, the image is what the records so far make of an empty one.
Before, it may be a mixture, which nobody can see: an agent promotes nothing before epoch 1.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from remusdb.core.blocks import BLOCK_BYTES, HASH_BYTES, block_count, block_hash, zero_table
from remusdb.core.messages import Base, Welcome
from remusdb.core.writes import RECORD, Kind, Record, iter_records
from remusdb.errors import BadFrame, PeerUnreachable

Progress = Callable[[str, int, int, str], None]

SAME, ZERO, SHIPPED = range(3)
ZERO_BLOCKS = (1 << 30) // BLOCK_BYTES  # the most in one ZERO record: its length has 32 bits
LOOK_S = 0.1


class ResyncFilter:
    """One disk's filter. First it takes the agent's hashes; then `reduce` and at last `rest`, for one thread."""

    def __init__(self, disk: int, size: int, seed: int) -> None:
        """`disk`: its index in records; `size`: bytes; `seed`: of the hashes."""
        self._disk, self._size, self._seed = disk, size, seed
        self.blocks = block_count(size)
        self._hashes = bytearray()
        self._has_data = np.zeros(self.blocks, np.bool_)  # whether the base's block is not zero
        self._state = np.zeros(self.blocks, np.uint8)

    @property
    def told(self) -> int:
        """Blocks whose hashes are here."""
        return len(self._hashes) // HASH_BYTES

    @property
    def same_bytes(self) -> int:
        """Bytes of blocks with data that were there and need not be sent."""
        return int(np.count_nonzero(self._has_data & (self._state == SAME))) * BLOCK_BYTES

    def take(self, message: Base) -> None:
        """The next part of the agent's table; BadFrame where it is not the next one."""
        count, over = divmod(len(message.hashes), HASH_BYTES)
        if over or message.first != self.told or message.first + count > self.blocks:
            raise BadFrame(f"disk {self._disk}: {len(message.hashes)} bytes of hashes for block {message.first}")
        zeros = np.frombuffer(zero_table(message.first, count, self._size, self._seed), np.uint8)
        differs = (np.frombuffer(message.hashes, np.uint8) != zeros).reshape(count, HASH_BYTES).any(axis=1)
        part = slice(message.first, message.first + count)
        self._has_data[part] = differs
        self._state[part] = np.where(differs, ZERO, SAME)
        self._hashes += message.hashes

    def reduce(self, raw: bytes) -> bytes:
        """Of these records, what has to be sent now."""
        return b"".join(piece for record in iter_records(raw) for piece in self._reduced(record))

    def rest(self) -> bytes:
        """What is still owed. Everything that comes later must be sent, unfiltered."""
        owed = self._state == ZERO
        self._state[owed] = SHIPPED
        return b"".join(self._zeros(np.flatnonzero(owed)))

    def _reduced(self, record: Record) -> Iterator[bytes | memoryview]:
        begin, end = record.offset, record.offset + record.length
        if record.kind is Kind.WRITE:
            yield from self._written(begin, end, record.data)
            return
        first, last = -(-begin // BLOCK_BYTES), self._blocks_before(end)
        if first > last:  # inside one block
            yield from self._cleared_part(begin, end)
            return
        yield from self._cleared_part(begin, min(first * BLOCK_BYTES, end))
        yield from self._cleared(first, last)
        yield from self._cleared_part(min(last * BLOCK_BYTES, end), end)

    def _blocks_before(self, end: int) -> int:
        """How many blocks are whole before byte `end`: the disk's last one may be short."""
        return self.blocks if end == self._size else end // BLOCK_BYTES

    def _cleared(self, first: int, last: int) -> Iterator[bytes]:
        """Zeros over whole blocks."""
        state, has_data = self._state[first:last], self._has_data[first:last]
        shipped = state == SHIPPED
        self._state[first:last] = np.where(shipped, SHIPPED, np.where(has_data, ZERO, SAME))
        yield from self._zeros(first + np.flatnonzero(shipped))

    def _cleared_part(self, begin: int, end: int) -> Iterator[bytes]:
        """Zeros over a part of one block."""
        if begin == end:
            return
        block = begin // BLOCK_BYTES
        state = self._state[block]
        if state == ZERO or (state == SAME and not self._has_data[block]):
            return  # it is all zeros
        self._state[block] = SHIPPED
        yield self._record(Kind.ZERO, begin, end - begin)

    def _written(self, begin: int, end: int, data: memoryview) -> Iterator[bytes | memoryview]:
        """Data: the blocks that the base does not have, in runs."""
        start = at = begin
        while at < end:
            block = at // BLOCK_BYTES
            stop = min((block + 1) * BLOCK_BYTES, self._size)  # of the block
            whole = at == block * BLOCK_BYTES and end >= stop
            stop = min(stop, end)
            if whole and self._is_base(block, data[at - begin : stop - begin]):
                self._state[block] = SAME
                yield from self._run(start, at, data[start - begin : at - begin])
                start = stop
            else:
                if not whole and self._state[block] == ZERO:
                    yield from self._zeros(np.array([block]))
                self._state[block] = SHIPPED
            at = stop
        yield from self._run(start, end, data[start - begin :])

    def _is_base(self, block: int, data: memoryview) -> bool:
        if self._state[block] == SHIPPED:
            return False
        return self._hashes[block * HASH_BYTES : (block + 1) * HASH_BYTES] == block_hash(data, self._seed)

    def _run(self, begin: int, end: int, data: memoryview) -> Iterator[bytes | memoryview]:
        if begin < end:
            yield self._record(Kind.WRITE, begin, end - begin)
            yield data

    def _zeros(self, blocks: NDArray[np.int64]) -> Iterator[bytes]:
        """ZERO records for these blocks, whose numbers grow."""
        for run in np.split(blocks, np.flatnonzero(np.diff(blocks) != 1) + 1):
            for at in range(0, len(run), ZERO_BLOCKS):
                part = run[at : at + ZERO_BLOCKS]
                begin, end = int(part[0]) * BLOCK_BYTES, min((int(part[-1]) + 1) * BLOCK_BYTES, self._size)
                yield self._record(Kind.ZERO, begin, end - begin)

    def _record(self, kind: Kind, offset: int, length: int) -> bytes:
        return RECORD.pack(kind, self._disk, 0, length, offset)


class ResyncFilters:
    """The filters of one session's disks, for those that the agent has an older image of."""

    def __init__(self, welcome: Welcome, sizes: Sequence[int]) -> None:
        """`sizes` of the disks, in bytes; BadFrame where the agent's bases are not of these disks."""
        if len(welcome.bases) > len(sizes):
            raise BadFrame(f"the agent has bases of {len(welcome.bases)} disks, there are {len(sizes)}")
        self._disks = len(sizes)
        self._filters: dict[int, ResyncFilter] = {}
        for disk, (blocks, size) in enumerate(zip(welcome.bases, sizes, strict=False)):
            if blocks not in (0, block_count(size)):
                raise BadFrame(f"the agent's base of disk {disk} has {blocks} blocks, not {block_count(size)}")
            if blocks:
                self._filters[disk] = ResyncFilter(disk, size, welcome.base_seed)

    def take(self, message: Base) -> None:
        """A part of a table, from the agent."""
        if message.disk not in self._filters:
            raise BadFrame(f"hashes of disk {message.disk}, which has no base")
        self._filters[message.disk].take(message)

    @property
    def told(self) -> list[int]:
        """For each disk, the blocks whose hashes are here: the agent goes on after these."""
        return [base.told if (base := self._filters.get(disk)) else 0 for disk in range(self._disks)]

    def wait(self, ended: threading.Event, progress: Progress) -> None:
        """Until every table is whole; PeerUnreachable once `ended` is set. The agent reads its images for it."""
        total = sum(base.blocks for base in self._filters.values())
        while total:
            told = sum(base.told for base in self._filters.values())
            progress("compare disks", told * BLOCK_BYTES, total * BLOCK_BYTES, "bytes")
            if told == total:
                return
            if ended.wait(LOOK_S):
                raise PeerUnreachable("the session ended while disks were compared")

    def reduce(self, disk: int, raw: bytes) -> bytes:
        """Of these records of that disk, what has to be sent."""
        base = self._filters.get(disk)
        return raw if base is None else base.reduce(raw)

    def rest(self) -> bytes:
        """What is still owed, once nothing is filtered any more."""
        return b"".join(base.rest() for base in self._filters.values())

    @property
    def same_bytes(self) -> int:
        """Bytes of blocks with data that the agent had already."""
        return sum(base.same_bytes for base in self._filters.values())
