# SPDX-License-Identifier: Apache-2.0
"""Replica images: whatever is recorded, the files read like the disks it was recorded from."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remusdb.core.writes import RECORD, Kind
from remusdb.errors import BadFrame, DiskError
from remusdb_agents.backup.disks.images import ReplicaImages

SIZES = [64 << 10, 12 << 10]


def record(kind: Kind, disk: int, offset: int, data: bytes = b"", length: int | None = None) -> bytes:
    return RECORD.pack(kind, disk, 0, len(data) if length is None else length, offset) + data


def write(offset: int, data: bytes, disk: int = 0) -> bytes:
    return record(Kind.WRITE, disk, offset, data)


@pytest.fixture
def images(tmp_path: Path) -> ReplicaImages:
    return ReplicaImages(tmp_path / "vm", SIZES, ["vda", "vdb"])


def test_new_images_are_sparse_zeros_of_the_exact_size(images: ReplicaImages) -> None:
    assert [path.name for path in images.paths] == ["vda.raw", "vdb.raw"]
    for path, size in zip(images.paths, SIZES, strict=True):
        assert path.stat().st_size == size
        assert path.stat().st_blocks == 0
        assert path.stat().st_mode & 0o777 == 0o600


def test_old_contents_are_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "vda.raw").write_bytes(b"x" * 9999)
    images = ReplicaImages(tmp_path, [4096], ["vda"])
    assert images.paths[0].read_bytes() == bytes(4096)


operation = st.tuples(
    st.sampled_from(list(Kind)),
    st.integers(0, 1),
    st.integers(0, 11 << 10),
    st.integers(0, 1 << 10),
    st.binary(min_size=1),
)


@given(st.lists(operation, max_size=25))
def test_any_records_give_the_disk(operations: list[tuple[Kind, int, int, int, bytes]]) -> None:
    disks = [bytearray(size) for size in SIZES]
    raw = b""
    for kind, disk, offset, length, pattern in operations:
        data = (pattern * length)[:length] if kind is Kind.WRITE else bytes(length)
        disks[disk][offset : offset + length] = data
        raw += write(offset, data, disk) if kind is Kind.WRITE else record(kind, disk, offset, length=length)
    with tempfile.TemporaryDirectory() as folder:
        images = ReplicaImages(Path(folder), SIZES, ["vda", "vdb"])
        images.apply(raw)
        images.close()
        assert [path.read_bytes() for path in images.paths] == disks


def test_zero_and_trim_give_space_back(images: ReplicaImages) -> None:
    images.apply(write(0, b"x" * SIZES[0]))
    assert images.paths[0].stat().st_blocks > 0
    images.apply(record(Kind.ZERO, 0, 0, length=32 << 10) + record(Kind.TRIM, 0, 32 << 10, length=32 << 10))
    assert images.paths[0].stat().st_blocks == 0
    assert images.paths[0].stat().st_size == SIZES[0]


@pytest.mark.parametrize("kind", list(Kind))
def test_beyond_the_end_is_refused_and_does_not_grow_the_file(images: ReplicaImages, kind: Kind) -> None:
    data = b"x" * 512 if kind is Kind.WRITE else b""
    images.apply(record(kind, 1, SIZES[1] - 512, data, 512))
    with pytest.raises(DiskError, match="beyond its end"):
        images.apply(record(kind, 1, SIZES[1] - 511, data, 512))
    assert images.paths[1].stat().st_size == SIZES[1]


def test_a_disk_that_does_not_exist_is_refused(images: ReplicaImages) -> None:
    with pytest.raises(DiskError, match="names disk 2"):
        images.apply(write(0, b"x", disk=2))


def test_a_cut_log_is_refused(images: ReplicaImages) -> None:
    with pytest.raises(BadFrame):
        images.apply(write(0, b"abcd")[:-1])


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\0b", ".hidden"])
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DiskError, match="not a disk name"):
        ReplicaImages(tmp_path / "vm", [4096], [name])
    assert not (tmp_path / "vm").exists()


def test_names_and_sizes_must_match(tmp_path: Path) -> None:
    for sizes, names in (([4096], ["a", "b"]), ([4096, 4096], ["a", "a"]), ([-1], ["a"])):
        with pytest.raises(DiskError):
            ReplicaImages(tmp_path, sizes, names)


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"keep")
    (tmp_path / "vda.raw").symlink_to(precious)
    with pytest.raises(DiskError):
        ReplicaImages(tmp_path, [4096], ["vda"])
    assert precious.read_bytes() == b"keep"


def test_free_check(images: ReplicaImages) -> None:
    images.free_check([0, 0])
    with pytest.raises(DiskError, match="not enough room") as caught:
        images.free_check([1 << 62, 0])
    assert caught.value.hint


def test_closed_images_take_nothing_more(images: ReplicaImages) -> None:
    images.close()
    images.close()
    with pytest.raises(DiskError, match="closed"):
        images.apply(write(0, b"x"))
    assert all(path.exists() for path in images.paths)


def test_remove_leaves_nothing(images: ReplicaImages) -> None:
    images.remove()
    images.remove()
    assert not images.folder.exists()


def test_remove_leaves_what_is_not_ours(images: ReplicaImages) -> None:
    (images.folder / "notes").touch()
    images.remove()
    assert [path.name for path in images.folder.iterdir()] == ["notes"]


@pytest.mark.parametrize("sizes", [[4096, 1 << 63], [4096, (1 << 63) - 1], [4096, -1], [1 << 64, 4096]])
def test_disks_that_cannot_be_made_leave_nothing(tmp_path: Path, sizes: list[int]) -> None:
    """No descriptor, no file, no folder; and what an earlier session left stays a base."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(DiskError):
            ReplicaImages(tmp_path / "vm", sizes, ["vda", "vdb"])
    assert not (tmp_path / "vm").exists() and len(os.listdir("/proc/self/fd")) == before
    (tmp_path / "vm").mkdir()
    for name, size in zip(("vda", "vdb"), sizes, strict=True):
        (tmp_path / "vm" / f"{name}.raw").write_bytes(b"x" * (4096 if size == 4096 else 9999))
    with pytest.raises(DiskError):
        ReplicaImages(tmp_path / "vm", sizes, ["vda", "vdb"])
    assert {path.read_bytes()[:1] for path in (tmp_path / "vm").iterdir()} == {b"x"}
    assert len(os.listdir("/proc/self/fd")) == before


def test_whatever_fails_in_the_middle_closes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, opened = len(os.listdir("/proc/self/fd")), []

    def truncate(fd: int, size: int) -> None:
        opened.append(fd)
        if len(opened) > 4:
            raise OverflowError("size")

    monkeypatch.setattr(os, "ftruncate", truncate)
    with pytest.raises(OverflowError):
        ReplicaImages(tmp_path / "vm", [4096] * 3, ["vda", "vdb", "vdc"])
    assert not (tmp_path / "vm").exists() and len(os.listdir("/proc/self/fd")) == before
