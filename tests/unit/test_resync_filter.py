# SPDX-License-Identifier: Apache-2.0
"""The initial sync onto an older image: whatever the records and the base, the image ends as if it had been empty."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remusdb.core.blocks import BLOCK_BYTES, HASH_BYTES, block_count, hash_table
from remusdb.core.messages import Base, Welcome
from remusdb.core.writes import RECORD, Kind, iter_records
from remusdb.disk import resync_filter as module
from remusdb.disk.resync_filter import ResyncFilter, ResyncFilters
from remusdb.errors import BadFrame, PeerUnreachable

SEED = 2**64 - 3
BLOCKS = 6
SIZES = (BLOCKS * BLOCK_BYTES, BLOCKS * BLOCK_BYTES - 512, (BLOCKS - 1) * BLOCK_BYTES + 512)


def record(kind: Kind, offset: int, length: int, data: bytes = b"") -> bytes:
    return RECORD.pack(kind, 0, 0, length, offset) + data


def write(offset: int, data: bytes) -> bytes:
    return record(Kind.WRITE, offset, len(data), data)


def applied(image: bytearray, raw: bytes) -> None:
    """As agents/remusdb_agents/backup/disks/images.py does it."""
    for one in iter_records(raw):
        assert one.offset + one.length <= len(image)
        image[one.offset : one.offset + one.length] = one.data if one.kind is Kind.WRITE else bytes(one.length)


def content(size: int, kinds: list[int]) -> bytearray:
    """A disk whose blocks are zeros (0) or one of a few patterns, so that two disks have blocks in common."""
    parts = [bytes(BLOCK_BYTES) if kind == 0 else random.Random(kind).randbytes(BLOCK_BYTES) for kind in kinds]
    return bytearray(b"".join(parts)[:size])


def filter_for(base: bytes) -> ResyncFilter:
    made = ResyncFilter(0, len(base), SEED)
    table = hash_table(base, SEED)
    for at in range(0, len(table), 4 * HASH_BYTES):
        made.take(Base(0, at // HASH_BYTES, table[at : at + 4 * HASH_BYTES]))
    assert made.told == made.blocks
    return made


def ranges(size: int) -> st.SearchStrategy[tuple[int, int]]:
    """Aligned to blocks, to sectors, or to nothing; also empty, and up to the end."""
    unit = st.sampled_from([BLOCK_BYTES, BLOCK_BYTES, 4096, 512, 1])
    return unit.flatmap(
        lambda step: st.tuples(st.integers(0, size // step), st.integers(0, size // step)).map(
            lambda ends: (min(ends) * step, size if max(ends) == size // step else max(ends) * step)
        )
    )


kinds = st.lists(st.integers(0, 4), min_size=BLOCKS, max_size=BLOCKS)


@st.composite
def copies(draw: st.DrawFn) -> tuple[bytearray, bytes, list[bytes]]:
    """A base, the disk at the end, and the records that QEMU makes of it, in the batches that the pump takes.

    QEMU zeroes the whole target or not, then copies chunk by chunk in order; chunks that are zero as ZERO, TRIM or
    data, or, where it had zeroed all, not at all. Guest writes of any kind come in between.
    """
    size = draw(st.sampled_from(SIZES))
    base = content(size, draw(kinds))
    disk = content(size, draw(kinds))
    log: list[bytes] = []
    zeroed_all = draw(st.booleans())
    if zeroed_all:
        step = draw(st.sampled_from([size, 2 * BLOCK_BYTES]))
        kind = draw(st.sampled_from([Kind.ZERO, Kind.TRIM]))
        log += [record(kind, at, min(step, size - at)) for at in range(0, size, step)]

    def guest() -> None:
        for _ in range(draw(st.integers(0, 2))):
            begin, end = draw(ranges(size))
            kind = draw(st.sampled_from(list(Kind)))
            old = bytes(base[begin:end]) if draw(st.booleans()) else random.Random(begin).randbytes(end - begin)
            data = old if kind is Kind.WRITE else b""
            disk[begin:end] = data or bytes(end - begin)
            log.append(record(kind, begin, end - begin, data))

    chunk = draw(st.sampled_from([BLOCK_BYTES, 2 * BLOCK_BYTES, 4096 * 5]))
    for at in range(0, size, chunk):
        if draw(st.integers(0, 3)) == 0:
            guest()
        data = bytes(disk[at : at + chunk])
        if any(data) or (how := draw(st.sampled_from(["write", "zero", "trim", "nothing"]))) == "write":
            log.append(write(at, data))
        elif how != "nothing":
            log.append(record(Kind.ZERO if how == "zero" else Kind.TRIM, at, len(data)))
        elif not zeroed_all:
            log.append(record(Kind.ZERO, at, len(data)))
    guest()
    return base, bytes(disk), log


@pytest.mark.slow
@settings(max_examples=300)
@given(copies(), st.integers(1, 5), st.data())
def test_what_is_sent_makes_the_disk_of_any_base(
    case: tuple[bytearray, bytes, list[bytes]], batch: int, data: st.DataObject
) -> None:
    """The copy may end anywhere in the log: the rest is then sent as it is, as epoch 1."""
    image, disk, log = case
    sieve = filter_for(bytes(image))
    end = data.draw(st.integers(0, len(log)))
    for at in range(0, end, batch):
        applied(image, sieve.reduce(b"".join(log[at : min(at + batch, end)])))
    applied(image, sieve.rest())
    expected = bytearray(len(image))
    applied(expected, b"".join(log[:end]))
    assert image == expected
    assert sieve.rest() == b""
    applied(image, b"".join(log[end:]))
    assert image == disk


def test_what_is_alike_is_not_sent() -> None:
    """One block of six differs, one became zero, two are zeros on both sides."""
    base, disk = content(SIZES[0], [1, 2, 0, 0, 3, 4]), content(SIZES[0], [1, 9, 0, 0, 0, 4])
    sieve = filter_for(bytes(base))
    sent = sieve.reduce(record(Kind.ZERO, 0, SIZES[0]))
    sent += sieve.reduce(write(0, bytes(disk[: 2 * BLOCK_BYTES])) + write(5 * BLOCK_BYTES, bytes(disk[-BLOCK_BYTES:])))
    assert sent == write(BLOCK_BYTES, bytes(disk[BLOCK_BYTES : 2 * BLOCK_BYTES]))
    assert sieve.rest() == record(Kind.ZERO, 4 * BLOCK_BYTES, BLOCK_BYTES)
    assert sieve.same_bytes == 2 * BLOCK_BYTES


OTHER = write(0, bytes(content(BLOCK_BYTES, [2])))


@pytest.mark.parametrize(
    "touch",
    [
        OTHER,
        OTHER + record(Kind.ZERO, 0, BLOCK_BYTES),
        OTHER + record(Kind.TRIM, 0, 2 * BLOCK_BYTES),
        write(512, b"x" * 512),
        record(Kind.TRIM, 512, 512),
        record(Kind.ZERO, BLOCK_BYTES - 1, 1),
    ],
)
def test_a_block_that_changes_back_is_sent(touch: bytes) -> None:
    """Once something was sent for a block, its hash says nothing any more."""
    base = content(2 * BLOCK_BYTES, [1, 0, 0])
    same = write(0, bytes(base[:BLOCK_BYTES]))
    sieve = filter_for(bytes(base))
    assert sieve.reduce(same) == b""
    assert sieve.reduce(touch) != b""
    assert sieve.reduce(same) == same
    assert sieve.rest() == b"" and sieve.same_bytes == 0


@pytest.mark.parametrize("size", SIZES)
def test_zeros_to_the_end_of_a_disk_of_any_size_wait(size: int) -> None:
    base = content(size, [1] * BLOCKS)
    sieve = filter_for(bytes(base))
    for _ in range(2):
        assert sieve.reduce(record(Kind.ZERO, 0, size)) == b"" == sieve.reduce(write(0, bytes(base)))
    assert sieve.rest() == b""


def test_what_no_record_names_becomes_zero() -> None:
    """The records are those of a copy onto an empty disk."""
    size = 3 * BLOCK_BYTES + 512
    sieve = filter_for(random.Random(1).randbytes(size))
    assert sieve.rest() == record(Kind.ZERO, 0, size)


def test_long_runs_of_zeros_keep_to_a_records_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ZERO_BLOCKS", 2)
    size = 4 * BLOCK_BYTES + 1
    sieve = filter_for(random.Random(1).randbytes(size))
    assert [(one.offset, one.length) for one in iter_records(sieve.rest())] == [
        (0, 2 * BLOCK_BYTES),
        (2 * BLOCK_BYTES, 2 * BLOCK_BYTES),
        (4 * BLOCK_BYTES, 1),
    ]


def welcome(*blocks: int) -> Welcome:
    return Welcome("1", "b", 1, 0, False, 500, list(blocks), SEED)


def test_disks_without_a_base_pass_as_they_are() -> None:
    bases = ResyncFilters(welcome(0, 2), [BLOCK_BYTES, 2 * BLOCK_BYTES])
    zero = record(Kind.ZERO, 0, BLOCK_BYTES)
    assert bases.reduce(0, zero) == zero
    bases.take(Base(1, 0, hash_table(bytes(2 * BLOCK_BYTES), SEED)))
    assert bases.reduce(1, zero) == b"" == bases.rest()
    assert ResyncFilters(welcome(), [BLOCK_BYTES]).reduce(0, zero) == zero


def test_the_copy_waits_for_every_table() -> None:
    bases = ResyncFilters(welcome(1, 3), [BLOCK_BYTES, 3 * BLOCK_BYTES])
    told: list[tuple[str, int, int, str]] = []
    ended = threading.Event()

    def progress(step: str, done: int, total: int, unit: str) -> None:
        told.append((step, done, total, unit))
        if len(told) == 1:
            bases.take(Base(0, 0, bytes(HASH_BYTES)))
            bases.take(Base(1, 0, bytes(2 * HASH_BYTES)))
        elif len(told) == 2:
            bases.take(Base(1, 2, bytes(HASH_BYTES)))

    bases.wait(ended, progress)
    assert [done for _, done, _, _ in told] == [0, 3 * BLOCK_BYTES, 4 * BLOCK_BYTES]
    ended.set()
    with pytest.raises(PeerUnreachable):
        ResyncFilters(welcome(1), [BLOCK_BYTES]).wait(ended, lambda *_: None)
    ResyncFilters(welcome(0), [BLOCK_BYTES]).wait(ended, lambda *_: None)


@pytest.mark.parametrize(
    "message", [Base(0, 1, bytes(16)), Base(0, 0, bytes(15)), Base(0, 0, bytes(48)), Base(1, 0, b"")]
)
def test_hashes_that_do_not_fit_are_refused(message: Base) -> None:
    with pytest.raises(BadFrame):
        ResyncFilters(welcome(2, 0), [2 * BLOCK_BYTES, BLOCK_BYTES]).take(message)


@pytest.mark.parametrize("blocks", [[1], [3], [2, 0, 0], [-1]])
def test_bases_of_other_disks_are_refused(blocks: list[int]) -> None:
    with pytest.raises(BadFrame):
        ResyncFilters(welcome(*blocks), [2 * BLOCK_BYTES, BLOCK_BYTES])


def test_the_number_of_blocks_is_that_of_the_size() -> None:
    assert [block_count(size) for size in (0, 1, BLOCK_BYTES, BLOCK_BYTES + 1)] == [0, 1, 1, 2]
