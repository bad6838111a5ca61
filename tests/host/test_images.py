# SPDX-License-Identifier: Apache-2.0
"""Replica images on file systems that are full, or cannot punch holes. Needs root, for the mounts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from remusdb.core.writes import RECORD, Kind
from remusdb.errors import DiskError
from remusdb_agents.backup.disks.images import ReplicaImages

SIZE = 4 << 20


def write(offset: int, data: bytes) -> bytes:
    return RECORD.pack(Kind.WRITE, 0, 0, len(data), offset) + data


def clear(kind: Kind, offset: int, length: int) -> bytes:
    return RECORD.pack(kind, 0, 0, length, offset)


@contextmanager
def mounted(kind: str, options: str, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", kind, "-o", options, kind, str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with mounted("tmpfs", "size=1m,mode=711", tmp_path / "small") as folder:
        yield folder


@pytest.fixture
def holeless(tmp_path: Path) -> Iterator[Path]:
    """A file system without fallocate."""
    with mounted("ramfs", "mode=755", tmp_path / "holeless") as folder:
        yield folder


def test_a_full_disk_is_named(small: Path) -> None:
    images = ReplicaImages(small, [SIZE], ["vda"])
    with pytest.raises(DiskError, match=f"^replica disk full: {images.paths[0]}$") as caught:
        images.apply(write(0, os.urandom(2 << 20)))
    assert caught.value.hint
    images.remove()
    assert list(small.parent.iterdir()) == [small]


def test_room_made_by_zeroes_is_used_again(small: Path) -> None:
    images = ReplicaImages(small, [SIZE], ["vda"])
    data = os.urandom(900 << 10)
    for at in range(4):
        images.apply(write(at << 20, data) + clear((Kind.ZERO, Kind.TRIM)[at % 2], at << 20, 1 << 20))
    images.apply(write(0, data))
    assert images.paths[0].read_bytes() == data + bytes(SIZE - len(data))
    images.close()


def test_free_check_knows_the_file_system(small: Path) -> None:
    images = ReplicaImages(small, [SIZE], ["vda"])
    images.free_check([512 << 10])
    with pytest.raises(DiskError, match="not enough room"):
        images.free_check([2 << 20])
    images.close()


@pytest.mark.parametrize("kind", [Kind.ZERO, Kind.TRIM])
def test_without_holes_zeros_are_written(holeless: Path, kind: Kind) -> None:
    images = ReplicaImages(holeless, [SIZE], ["vda"])
    images.apply(write(0, b"x" * SIZE) + clear(kind, 1000, 3 << 20) + clear(kind, 0, 0))
    assert images.paths[0].read_bytes() == b"x" * 1000 + bytes(3 << 20) + b"x" * (SIZE - 1000 - (3 << 20))
    images.close()
