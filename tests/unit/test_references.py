# SPDX-License-Identifier: Apache-2.0
"""Pages that go as references to a disk: what is on the wire, and what the agent makes of it."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from remusdb.core.messages import Acked, unpack
from remusdb.core.pages import HEAD, PAYLOAD_PAGES, decode_pages
from remusdb.core.pagework import PAGE_BYTES, Bytes
from remusdb.core.references import (
    DISK_SHIFT,
    Places,
    ReferenceRefused,
    decode_references,
    digest,
    encode_references,
    is_reference,
)
from remusdb.core.wire import Frame, FrameType
from remusdb.core.writes import RECORD, Kind
from remusdb.errors import BadFrame
from remusdb_agents.backup import references
from remusdb_agents.backup.disks.images import ReplicaImages
from remusdb_agents.backup.references import References

NOISE = np.random.default_rng(1)
SIZES = [300 * PAGE_BYTES, 8 * PAGE_BYTES + 100]


def noise(pages: int) -> Bytes:
    return NOISE.integers(1, 256, (pages, PAGE_BYTES), np.uint8)


def places(*of: tuple[int, int]) -> Places:
    return np.array([disk << DISK_SHIFT | block for disk, block in of], np.uint64)


@pytest.fixture
def disks(tmp_path: Path) -> ReplicaImages:
    return ReplicaImages(tmp_path / "vm", SIZES, ["vda", "vdb"])


def write(disks: ReplicaImages, disk: int, block: int, content: Bytes) -> None:
    data = content.tobytes()
    disks.apply(RECORD.pack(Kind.WRITE, disk, 0, len(data), block * PAGE_BYTES) + data)


def frame(payload: bytes) -> Frame:
    return Frame(FrameType.PAGES, 7, 3, payload)


def test_a_payload_says_which_pages_are_which_blocks() -> None:
    content, numbers = noise(3), np.array([0, 5, 1 << 31])
    payload = encode_references(4, numbers, places((0, 9), (1, 2), (0, 9)), content)
    found = decode_references(payload)
    assert found.block == 4 and found.numbers.tolist() == numbers.tolist()
    assert found.places.tolist() == places((0, 9), (1, 2), (0, 9)).tolist()
    assert [row.tobytes() for row in found.digests] == [digest(page.data) for page in content]
    assert is_reference(payload) and len(payload) == HEAD.size + 3 * 28
    assert not is_reference(b"") and not is_reference(b"\x01") and not is_reference(b"\x02")


def test_what_is_not_well_formed_is_a_bad_frame_before_anything_is_read() -> None:
    payload = encode_references(0, np.array([1, 2]), places((0, 0), (0, 1)), noise(2))
    twice = payload[:-4] + struct.pack("<I", 0)
    heads = [(4, 1, 0, 0, 2, 0), (4, 0, 0, 1, 2, 0), (4, 0, 0, 0, 2, 1), (4, 0, 0, 0, 0, 0), (1, 0, 0, 0, 2, 0)]
    many = (
        HEAD.pack(4, 0, 0, 0, PAYLOAD_PAGES + 1, 0)
        + bytes((PAYLOAD_PAGES + 1) * 24)
        + b"\1\0\0\0" * (PAYLOAD_PAGES + 1)
    )
    bad = [HEAD.pack(*head) + payload[HEAD.size :] for head in heads]
    for wrong in (payload[:9], payload[:-1], payload + b"x", twice, many, HEAD.pack(4, 0, 0, 0, 1 << 31, 0), *bad):
        with pytest.raises(BadFrame):
            decode_references(wrong)
    with pytest.raises(BadFrame):
        decode_pages(payload)
    with pytest.raises(ValueError, match="0 references"):
        encode_references(0, np.array([], np.int64), places(), noise(0))


def test_the_pages_themselves_are_put_in_their_place(disks: ReplicaImages) -> None:
    """In any order, from several disks, one block for several pages, neighbours and not."""
    first, second = noise(300), noise(8)
    write(disks, 0, 0, first)
    write(disks, 1, 0, second)
    where = [(1, 7), *((0, block) for block in range(299, 40, -1)), (0, 41), (0, 3), (1, 0), (0, 0), (0, 299)]
    content = np.stack([(first, second)[disk][block] for disk, block in where])
    numbers = np.arange(len(where)) * 3 + 1
    taken = References().follow(frame(encode_references(2, numbers, places(*where), content)), disks)
    assert (taken.type, taken.term, taken.epoch) == (FrameType.PAGES, 7, 3)
    pages = decode_pages(taken.payload)
    assert pages.block == 2 and pages.numbers.tolist() == numbers.tolist()
    assert np.array_equal(pages.data, content)


@pytest.mark.parametrize(
    "place", [(2, 0), (255, 0), (0, 300), (1, 8), (0, (1 << DISK_SHIFT) - 1), (0, 1 << 51), (0, 1 << 52)]
)
def test_a_block_that_is_on_no_disk_is_refused(disks: ReplicaImages, place: tuple[int, int]) -> None:
    """Also the last block of a disk, where it is not whole."""
    write(disks, 0, 0, good := noise(1))
    payload = encode_references(0, np.array([1, 2]), places((0, 0), place), np.concatenate((good, noise(1))))
    with pytest.raises(ReferenceRefused, match="which is not there"):
        References().follow(frame(payload), disks)


def test_one_block_that_is_not_the_page_has_all_of_them_refused_and_no_more_taken(disks: ReplicaImages) -> None:
    content = noise(4)
    write(disks, 0, 0, content)
    payload = encode_references(0, np.arange(4), places(*((0, block) for block in range(4))), content)
    here = References()
    here.follow(frame(payload), disks)
    assert unpack(Acked, here.word(5)).applied == 5
    one = content[3:].copy()
    one[0, 4095] ^= 1
    write(disks, 0, 3, one)
    with pytest.raises(ReferenceRefused, match="block 3 of disk 0 is not the page"):
        here.follow(frame(payload), disks)
    assert here.word(6) == b"", "more would come"
    here.begin()
    assert here.word(0) != b"", "of another session"


def test_disks_that_cannot_be_read_refuse(disks: ReplicaImages) -> None:
    payload = encode_references(0, np.array([0]), places((0, 0)), noise(1))
    disks.close()
    here = References()
    with pytest.raises(ReferenceRefused, match="closed"):
        here.follow(frame(payload), disks)
    assert here.word(1) == b""


def test_slow_disks_are_left_alone_for_a_while(disks: ReplicaImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """The epoch's output waited for them. What was read is right all the same, and one bad moment is not for good."""
    content = noise(1)
    write(disks, 0, 0, content)
    payload, now, takes_s = encode_references(0, np.array([0]), places((0, 0)), content), [100.0], [0.4]

    def read(disk: int, offset: int, length: int) -> memoryview:
        now[0] += takes_s[0]
        return disks.read(disk, offset, length)

    monkeypatch.setattr(references, "monotonic", lambda: now[0])
    slow = SimpleNamespace(sizes=disks.sizes, will_read=disks.will_read, read=read)
    here = References()
    taken = here.follow(frame(payload), slow)
    assert np.array_equal(decode_pages(taken.payload).data, content)
    assert here.word(1) == b""
    now[0] += 0.4 * references.RESTS - 1
    assert here.word(2) == b"", "it rests"
    now[0] += 2
    assert unpack(Acked, here.word(3)).applied == 3
    takes_s[0] = 0.1
    here.follow(frame(payload), slow)
    assert here.word(4) != b"", "that was quick"
    takes_s[0] = 0.4
    here.follow(frame(payload), slow)
    here.begin()
    assert here.word(0) != b"", "of another session"


def test_disks_that_do_not_come_to_an_end_are_not_waited_for(
    disks: ReplicaImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = noise(200)
    write(disks, 0, 0, content)
    payload = encode_references(0, np.arange(200), places(*((0, block) for block in range(200))), content)
    reads, now = [], [0.0]

    def read(disk: int, offset: int, length: int) -> memoryview:
        reads.append((offset, length))
        now[0] += references.MOST_S * 0.6
        return disks.read(disk, offset, length)

    slow = SimpleNamespace(sizes=disks.sizes, will_read=disks.will_read, read=read)
    monkeypatch.setattr(references, "monotonic", lambda: now[0])
    here = References()
    with pytest.raises(ReferenceRefused, match="too slow"):
        here.follow(frame(payload), slow)
    assert len(reads) == 2 and here.word(1) == b""


def test_only_pages_of_this_kind_concern_the_disks() -> None:
    payload = encode_references(0, np.array([0]), places((0, 0)), noise(1))
    here = References()
    assert here.concern(frame(payload))
    assert not here.concern(Frame(FrameType.WRITES, 7, 3, payload)) and not here.concern(frame(b""))
