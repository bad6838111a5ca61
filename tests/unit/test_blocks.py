# SPDX-License-Identifier: Apache-2.0
"""Tables of block hashes: of memory, of sparse files, and of zeros they agree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remusdb.core.blocks import BLOCK_BYTES, HASH_BYTES, block_count, block_hash, hash_table, zero_table
from remusdb_agents.backup.disks.block_hashes import STEP_BLOCKS, table
from remusdb_agents.backup.disks.sparse import opened

SIZES = [512, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 512, 5 * BLOCK_BYTES, 7 * BLOCK_BYTES + 1]


@pytest.mark.parametrize("size", SIZES)
def test_a_table_has_one_hash_a_block_and_the_last_may_be_short(size: int) -> None:
    data = os.urandom(size)
    hashes = hash_table(data, 7)
    assert len(hashes) == HASH_BYTES * block_count(size)
    last = (block_count(size) - 1) * BLOCK_BYTES
    assert hashes[-HASH_BYTES:] == block_hash(data[last:], 7)
    assert hash_table(memoryview(data), 7) == hashes != hash_table(data, 8)


@pytest.mark.parametrize("size", SIZES)
def test_zeros_need_not_be_read(size: int) -> None:
    whole = hash_table(bytes(size), 2**64 - 1)
    count = block_count(size)
    assert zero_table(0, count, size, 2**64 - 1) == whole
    for first in range(count + 1):
        for some in range(count - first + 1):
            part = whole[first * HASH_BYTES : (first + some) * HASH_BYTES]
            assert zero_table(first, some, size, 2**64 - 1) == part


def test_a_longer_disk_and_another_place_give_the_same_hash_only_for_the_same_bytes() -> None:
    block = os.urandom(BLOCK_BYTES)
    assert block_hash(block, 1) == hash_table(bytes(BLOCK_BYTES) + block, 1)[HASH_BYTES:]
    changed = bytearray(block)
    changed[-1] ^= 1
    assert block_hash(changed, 1) != block_hash(block, 1)
    assert block_hash(bytes(512), 1) != block_hash(bytes(1024), 1)


@pytest.mark.parametrize("size", [*SIZES, (3 * STEP_BLOCKS + 5) * BLOCK_BYTES + 4096])
def test_a_sparse_files_table_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    """Data at odd places, holes before, between and after it; asked for in parts of any length."""
    path = tmp_path / "vda.raw"
    with path.open("wb") as file:
        for at in (0, size // 3, size // 2 + 77):
            file.seek(at)
            file.write(os.urandom(min(9000, size - at)))
        file.truncate(size)
    whole = hash_table(path.read_bytes(), 5)
    count = block_count(size)
    with opened(path, os.O_RDONLY) as fd:
        for step in (1, 3, STEP_BLOCKS, count):
            parts = [table(fd, first, min(step, count - first), size, 5) for first in range(0, count, step)]
            assert b"".join(parts) == whole


def test_a_file_without_any_data(tmp_path: Path) -> None:
    path = tmp_path / "vda.raw"
    size = 70 * BLOCK_BYTES + 512
    path.touch()
    os.truncate(path, size)
    with opened(path, os.O_RDONLY) as fd:
        assert table(fd, 0, 71, size, 3) == zero_table(0, 71, size, 3)
