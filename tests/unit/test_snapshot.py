# SPDX-License-Identifier: Apache-2.0
"""A snapshot of replica disks: whatever is applied while it is read, it is the disks as they were."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remusdb.core.writes import RECORD, Kind
from remusdb.errors import DiskError, RefusedForSafety
from remusdb_agents.backup.disks.images import ReplicaImages
from remusdb_agents.backup.disks.snapshot import BLOCK_BYTES, STEP_BLOCKS, Snapshot

SIZES = [9 * BLOCK_BYTES + 512, 2 * BLOCK_BYTES]
PLENTY = 1 << 30


def record(kind: Kind, disk: int, offset: int, length: int, letter: bytes = b"") -> bytes:
    return RECORD.pack(kind, disk, 0, length, offset) + (letter * length if kind is Kind.WRITE else b"")


def drained(snapshot: Snapshot, into: list[bytearray]) -> None:
    while (piece := snapshot.next()) is not None:
        assert not any(into[piece.disk][piece.offset : piece.offset + len(piece.data)]), "the same bytes twice"
        into[piece.disk][piece.offset : piece.offset + len(piece.data)] = piece.data


change = st.tuples(
    st.sampled_from(list(Kind)), st.integers(0, 1), st.integers(0, 20), st.integers(1, 12), st.integers(0, 3)
)


@given(st.lists(change, max_size=8), st.lists(change, max_size=16))
def test_whatever_is_applied_meanwhile_it_is_the_disks_as_they_were(
    before: list[tuple[Kind, int, int, int, int]], meanwhile: list[tuple[Kind, int, int, int, int]]
) -> None:
    half = BLOCK_BYTES // 2
    with tempfile.TemporaryDirectory() as folder:
        images = ReplicaImages(Path(folder), SIZES, ["vda", "vdb"])

        def apply(kind: Kind, disk: int, at: int, length: int, letter: int) -> None:
            offset = min(at * half, SIZES[disk] - 512)
            images.apply(record(kind, disk, offset, min(length * half, SIZES[disk] - offset), bytes([65 + letter])))

        for one in before:
            apply(*one)
        wanted = [path.read_bytes() for path in images.paths]
        snapshot, got = images.snapshot(PLENTY), [bytearray(size) for size in SIZES]
        for one in meanwhile:
            apply(*one)
            for _ in range(one[-1]):
                if (piece := snapshot.next()) is not None:
                    got[piece.disk][piece.offset : piece.offset + len(piece.data)] = piece.data
        drained(snapshot, got)
        assert [bytes(disk) for disk in got] == wanted
        images.close()


@pytest.fixture
def images(tmp_path: Path) -> ReplicaImages:
    made = ReplicaImages(tmp_path / "vm", SIZES, ["vda", "vdb"])
    made.apply(record(Kind.WRITE, 0, 0, SIZES[0], b"x"))
    return made


def test_holes_are_not_read_and_not_put_by(images: ReplicaImages) -> None:
    images.apply(record(Kind.TRIM, 0, BLOCK_BYTES, 7 * BLOCK_BYTES))
    snapshot = images.snapshot(0)
    images.apply(record(Kind.WRITE, 0, BLOCK_BYTES, 4 * BLOCK_BYTES, b"y"))
    images.apply(record(Kind.WRITE, 1, 0, SIZES[1], b"y"))
    seen = []
    while (piece := snapshot.next()) is not None:
        seen.append((piece.disk, piece.offset // BLOCK_BYTES))
    assert seen == [(0, 0), (0, 8)] and snapshot.put_by_bytes == 0


def test_what_is_put_by_is_bounded_and_the_replica_goes_on(images: ReplicaImages) -> None:
    """The applier never waits for a slow reader; the reader is told."""
    snapshot = images.snapshot(2 * BLOCK_BYTES)
    images.apply(record(Kind.WRITE, 0, 0, SIZES[0], b"y"))
    assert images.paths[0].read_bytes() == b"y" * SIZES[0] and not images.spoiled
    with pytest.raises(DiskError, match="faster than they are copied"):
        snapshot.next()


def test_what_was_read_makes_room_again(images: ReplicaImages) -> None:
    snapshot, got = images.snapshot(BLOCK_BYTES), [bytearray(size) for size in SIZES]
    for block in range(9):
        images.apply(record(Kind.WRITE, 0, block * BLOCK_BYTES, BLOCK_BYTES, b"y"))
        piece = snapshot.next()
        assert piece is not None
        got[0][piece.offset : piece.offset + len(piece.data)] = piece.data
    drained(snapshot, got)
    assert bytes(got[0]) == b"x" * SIZES[0]


def test_a_disk_that_cannot_be_read_costs_no_epoch(images: ReplicaImages, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = images.snapshot(PLENTY)

    def broken(_file: int, _at: int, _length: int) -> memoryview:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("remusdb_agents.backup.disks.snapshot.read", broken)
    images.apply(record(Kind.WRITE, 0, 0, 512, b"y"))
    assert images.paths[0].read_bytes()[:513] == b"y" * 512 + b"x" and not images.spoiled
    with pytest.raises(DiskError, match="Input/output"):
        snapshot.next()


@pytest.mark.parametrize("how", ["takeover", "close"])
def test_a_takeover_and_the_sessions_end_wait_for_nobody(images: ReplicaImages, how: str) -> None:
    """From then on another one writes these files: nothing more is read of them."""
    snapshot = images.snapshot(PLENTY)
    assert (piece := snapshot.next()) is not None and len(piece.data) == STEP_BLOCKS * BLOCK_BYTES
    images.end_snapshot("this host takes the VM over") if how == "takeover" else images.close()
    with pytest.raises(RefusedForSafety, match="takes the VM over" if how == "takeover" else "given up"):
        snapshot.next()


def test_one_at_a_time_and_none_of_closed_disks(images: ReplicaImages) -> None:
    images.snapshot(PLENTY)
    with pytest.raises(RefusedForSafety):
        images.snapshot(PLENTY)
    images.end_snapshot("done")
    images.snapshot(PLENTY)
    images.close()
    with pytest.raises(RefusedForSafety):
        images.snapshot(PLENTY)
