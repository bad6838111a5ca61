# SPDX-License-Identifier: Apache-2.0
"""The index of what stands on the disks: it names a block only where the agent has that content."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remusdb.core.diskindex import SLOTS_MAX, DiskIndex
from remusdb.core.pagework import PAGE_BYTES
from remusdb.core.references import place_of
from remusdb.core.writes import RECORD, Kind

BLOCKS = [12, 5]
SIZES = [12 * PAGE_BYTES, 5 * PAGE_BYTES + 100]
CONTENTS = np.random.default_rng(1).integers(1, 256, (6, PAGE_BYTES), np.uint8)


def record(kind: Kind, disk: int, offset: int, length: int, data: bytes = b"") -> bytes:
    return RECORD.pack(kind, disk, 0, length, offset) + data


def written(disk: int, block: int, *contents: int) -> bytes:
    data = CONTENTS[list(contents)].tobytes()
    return record(Kind.WRITE, disk, block * PAGE_BYTES, len(data), data)


whole = st.tuples(
    st.just(Kind.WRITE), st.integers(0, 1), st.integers(0, 11), st.lists(st.integers(0, 5), min_size=1, max_size=9)
)
part = st.tuples(
    st.sampled_from([Kind.ZERO, Kind.TRIM, Kind.WRITE]), st.integers(0, 1), st.integers(0, 40_000), st.integers(1, 9000)
)


@given(
    st.lists(st.lists(st.one_of(whole, part), max_size=5), min_size=1, max_size=5),
    st.integers(0, 5),
    st.sampled_from([1, 4, SLOTS_MAX]),
)
def test_what_is_found_is_there_for_an_agent_anywhere_between(
    epochs: list[list[Any]], applied: int, slots: int
) -> None:
    """After the newest epoch, every block that is named has the page's content in each state from `applied` on; with
    room for all, a content is found where it was written last, unless that is not there any more."""
    index, disks = DiskIndex(SIZES, 7, slots), [bytearray(size) for size in SIZES]
    known: dict[tuple[int, int], int] = {}  # content by place
    last: dict[int, tuple[int, int]] = {}  # place by content
    states = []
    for epoch, operations in enumerate(epochs):
        raw = b""
        for kind, disk, at, what in operations:
            if isinstance(what, list):
                count = min(len(what), BLOCKS[disk] - at)
                if count < 1:
                    continue
                raw += written(disk, at, *what[:count])
                disks[disk][at * PAGE_BYTES : (at + count) * PAGE_BYTES] = CONTENTS[what[:count]].tobytes()
                for number in range(count):
                    known[disk, at + number], last[what[number]] = what[number], (disk, at + number)
                continue
            length = min(what, SIZES[disk] - at)
            if length < 1:
                continue
            data = b"\x07" * length if kind is Kind.WRITE else b""
            raw += record(kind, disk, at, length, data)
            disks[disk][at : at + length] = data or bytes(length)
            touched = range(at // PAGE_BYTES, -(-(at + length) // PAGE_BYTES))
            known = {place: what for place, what in known.items() if place[0] != disk or place[1] not in touched}
        index.note(raw, epoch)
        states.append([bytes(disk) for disk in disks])
    rows, places = index.find(CONTENTS, applied)
    for row, place in zip(rows, places, strict=True):
        disk, block = place_of(int(place))
        for state in states[min(applied, len(states) - 1) :]:
            assert state[disk][block * PAGE_BYTES : (block + 1) * PAGE_BYTES] == CONTENTS[row].tobytes()
    if slots == SLOTS_MAX and applied >= len(epochs) - 1:
        assert rows.tolist() == [row for row in range(6) if row in last and known.get(last[row]) == row]


def test_a_block_that_is_overwritten_in_the_same_epoch_is_not_what_it_was() -> None:
    index = DiskIndex(SIZES, 7)
    index.note(written(0, 3, 0), 0)
    assert index.find(CONTENTS, 0)[0].tolist() == [0]
    index.note(written(0, 3, 1), 1)
    assert index.find(CONTENTS, 0)[0].tolist() == [], "the new content is not applied, the old one is no more"
    assert index.find(CONTENTS, 1)[0].tolist() == [1]


def test_nothing_is_known_after_clear_and_zeros_never() -> None:
    index = DiskIndex(SIZES, 7)
    assert not index.known
    index.note(record(Kind.WRITE, 1, 0, PAGE_BYTES, bytes(PAGE_BYTES)), 0)
    assert not index.known and not len(index.find(np.zeros((1, PAGE_BYTES), np.uint8), 0)[0])
    index.note(written(1, 0, 2), 0)
    assert index.known and place_of(int(index.find(CONTENTS, 0)[1][0])) == (1, 0)
    index.clear()
    assert not index.known and not len(index.find(CONTENTS, 9)[0])


@pytest.mark.parametrize("raw", [written(9, 0, 1), record(Kind.ZERO, 0, 1 << 40, 1 << 31), written(0, 1 << 20, 1)])
def test_what_is_beyond_every_disk_is_not_known(raw: bytes) -> None:
    index = DiskIndex(SIZES, 7)
    index.note(raw, 0)
    assert not index.known


def test_the_tables_of_a_huge_disk_are_no_larger() -> None:
    index = DiskIndex([1 << 50], 7)
    tables: list[Any] = [index._tag, index._block, index._epoch, *index._at]
    assert sum(table.nbytes for table in tables) == SLOTS_MAX * 56 == 112 << 20
    for block in (0, SLOTS_MAX, (1 << 37) + 5):  # of the first two, which have one slot, the later one is known
        index.note(written(0, block, block % 6), 0)
    found = dict(zip(*(part.tolist() for part in index.find(CONTENTS, 0)), strict=True))
    assert found == {SLOTS_MAX % 6: SLOTS_MAX, ((1 << 37) + 5) % 6: (1 << 37) + 5}
    index.note(record(Kind.TRIM, 0, 4 << 12, 1 << 12), 1)
    assert len(index.find(CONTENTS, 9)[0]) == 2
    index.note(record(Kind.TRIM, 0, (SLOTS_MAX - 4) << 12, 12 << 12), 1)
    assert not len(index.find(CONTENTS, 9)[0]), "what else has the slots of forgotten blocks is forgotten with them"
