# SPDX-License-Identifier: Apache-2.0
"""Hashes of a disk's blocks: both sides tell by them what they hold alike, so that only what differs is copied.

A disk is cut into blocks of BLOCK_BYTES, the last one may be short; a table is the hashes of consecutive blocks,
HASH_BYTES each, one after the other. The hash is xxh3-128 with a seed that the agent draws for each session.

xxh3 is not cryptographic: whoever knows the seed can make two blocks with one hash. Both sides are ours, but what is
hashed is the guest's. The guest never learns a seed, and blocks that it made alike for one seed differ with the next;
what it could spoil is its own replica.
"""

from __future__ import annotations

from typing import Final

from xxhash import xxh3_128_digest

BLOCK_BYTES: Final = 64 * 1024  # what QEMU's block copy works in, too
HASH_BYTES: Final = 16
SEED_BITS: Final = 62  # no number of a message is larger

_ZEROS: Final = bytes(BLOCK_BYTES)

Buffer = bytes | bytearray | memoryview


def block_count(size: int) -> int:
    """Blocks of a disk of `size` bytes."""
    return -(-size // BLOCK_BYTES)


def block_hash(block: Buffer, seed: int) -> bytes:
    """The hash of one block's content."""
    return xxh3_128_digest(block, seed)


def hash_table(data: Buffer, seed: int) -> bytes:
    """The hashes of the blocks in `data`, which begins at a block; its end may be that of the disk."""
    view = memoryview(data).cast("B")
    return b"".join(block_hash(view[at : at + BLOCK_BYTES], seed) for at in range(0, len(view), BLOCK_BYTES))


def zero_table(first: int, count: int, size: int, seed: int) -> bytes:
    """The table of `count` blocks from `first` on, all of them zeros, of a disk of `size` bytes."""
    whole = max(0, min(count, size // BLOCK_BYTES - first))
    table = block_hash(_ZEROS, seed) * whole
    if whole < count:
        table += block_hash(_ZEROS[: size % BLOCK_BYTES], seed)
    return table
