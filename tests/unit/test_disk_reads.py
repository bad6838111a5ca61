# SPDX-License-Identifier: Apache-2.0
"""Disk-read tracking from the cut to the replica: what is referred to, and that the replica is the same with it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from remusdb.capture.cut import Cut, DirtyBlock
from remusdb.core.blocks import hash_table
from remusdb.core.messages import Base, Welcome, pack
from remusdb.core.pagecache import PageCache
from remusdb.core.pages import Encoding, decode_pages, resolve
from remusdb.core.pagework import PAGE_BYTES, Bytes
from remusdb.core.references import is_reference
from remusdb.core.wire import Frame, FrameType
from remusdb.core.writes import RECORD, Kind, decode_writes
from remusdb.disk.resync_filter import ResyncFilters
from remusdb.errors import BadFrame
from remusdb.vm.ramblocks import Block
from remusdb.worker import disk_reads
from remusdb.worker.agent_side import AgentSide
from remusdb.worker.disk_reads import LEAST_LINES, DiskReads
from remusdb.worker.encoder import Encoder, EpochFrames
from remusdb.worker.initial_sync import DiskPump
from remusdb.worker.outbox import Outbox
from remusdb_agents.backup import references
from remusdb_agents.backup.disks.images import ReplicaImages
from remusdb_agents.backup.inbox import EpochTooLarge, Inbox
from remusdb_agents.backup.references import References

PAGES, BLOCKS = 600, 200
RNG = np.random.default_rng(2)


def noise(pages: int) -> Bytes:
    return RNG.integers(1, 256, (pages, PAGE_BYTES), np.uint8)


def written(block: int, content: Bytes) -> bytes:
    data = content.tobytes()
    return RECORD.pack(Kind.WRITE, 0, 0, len(data), block * PAGE_BYTES) + data


class Pair:
    """A primary's encoder, and an agent that applies when it is told to."""

    def __init__(self, folder: Path, percent: int = 100, encoding: Encoding = "delta") -> None:
        self.disk, self.memory = np.zeros((BLOCKS, PAGE_BYTES), np.uint8), np.zeros((PAGES, PAGE_BYTES), np.uint8)
        self.reads = DiskReads([BLOCKS * PAGE_BYTES])
        self.encoder = Encoder([Block("ram", PAGES * PAGE_BYTES, 0)], encoding, percent, self.reads)
        self.images = ReplicaImages(folder, [BLOCKS * PAGE_BYTES], ["vda"])
        self.replica = np.zeros_like(self.memory)
        self.references, self.inbox = References(), Inbox(1 << 30)
        self.waiting: list[list[Frame]] = []
        self.epoch = self.applied = 0

    def seed(self) -> None:
        """The initial sync of a disk of noise; then the agent says that it has it."""
        self.disk[:] = noise(BLOCKS)
        raw = written(0, self.disk)
        self.reads.note(raw, 0)
        self.images.apply(raw)
        self.reads.told(0)

    def cut(self, numbers: Any, writes: bytes = b"") -> EpochFrames:
        self.epoch += 1
        dirty = DirtyBlock(0, np.array(numbers), self.memory[numbers].copy())
        return self.encoder.epoch(self.epoch, Cut(b"state", [dirty]), [writes], [], stays=False)

    def ship(self, frames: EpochFrames) -> None:
        """The agent takes the whole epoch, and applies it some time."""
        for kind, payload in frames.frames:
            frame = Frame(kind, 1, frames.epoch, payload)
            if self.references.concern(frame):
                self.inbox.add(self.references.follow(frame, self.images), len(payload))
            else:
                self.inbox.add(frame)
        commit = Frame(FrameType.COMMIT, 1, frames.epoch, pack(frames.commit))
        self.waiting.append(self.inbox.close(commit, 0).frames)

    def apply(self, leave: int = 0) -> None:
        """Apply what waits but for the newest so many, and say so."""
        while len(self.waiting) > leave:
            for frame in self.waiting.pop(0):
                if frame.type is FrameType.WRITES:
                    self.images.apply(decode_writes(frame.payload))
                elif frame.type is FrameType.PAGES:
                    decoded = decode_pages(frame.payload)
                    self.replica[decoded.zero] = 0
                    self.replica[decoded.numbers] = resolve(decoded, self.replica[decoded.numbers])
            self.applied += 1
        self.reads.told(self.applied)


@pytest.fixture(autouse=True)
def no_disk_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is: tests/unit/test_references.py is about disks that are."""
    monkeypatch.setattr(references, "SLOW_S", 60.0)
    monkeypatch.setattr(references, "MOST_S", 60.0)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    made = Pair(tmp_path / "vm")
    made.seed()
    return made


def referred(frames: EpochFrames) -> int:
    assert frames.referred is not None
    return frames.referred[0]


@pytest.mark.parametrize("percent", [100, 1])
def test_the_replica_is_the_same_whatever_is_read_written_and_applied_when(tmp_path: Path, percent: int) -> None:
    """An agent that lags; blocks that are overwritten, in whole, in part and in the epoch in which they are read."""
    pair, total = Pair(tmp_path / "vm", percent), 0
    pair.seed()
    for _ in range(60):
        raw = b""
        read, into = RNG.integers(0, BLOCKS, 60), RNG.permutation(PAGES)[:60]
        before = pair.disk.copy()
        for block in RNG.integers(0, BLOCKS - 1, 12):
            if block % 3:
                pair.disk[block : block + 2] = data = noise(2)
                raw += written(int(block), data)
            else:
                raw += RECORD.pack(Kind.ZERO, 0, 0, 100, int(block) * PAGE_BYTES + 50)
                pair.disk[block, 50:150] = 0
        pair.memory[into[:30]] = before[read[:30]]  # read before the writes
        pair.memory[into[30:50]] = pair.disk[read[30:50]]
        pair.memory[into[50:], RNG.integers(0, PAGE_BYTES)] ^= 1
        frames = pair.cut(np.sort(into), raw)
        total += referred(frames)
        pair.ship(frames)
        pair.apply(leave=int(RNG.integers(0, 4)))
    pair.apply()
    assert np.array_equal(pair.replica, pair.memory)
    assert pair.images.paths[0].read_bytes() == pair.disk.tobytes()
    assert total > 1000 and len(pair.references.word(0)), "hardly anything was referred to, or something was refused"


def test_only_what_would_be_sent_whole_is_referred_to(pair: Pair) -> None:
    """Not a page that changed in a few places, is zero, or did not change."""
    numbers = np.arange(5)
    pair.memory[numbers] = pair.disk[10:15]
    first = pair.cut(numbers)
    assert first.cached == (0, 0), "they are encoded besides"
    assert first.referred == (5, 5) and sum(is_reference(payload) for _, payload in first.frames) == 1
    assert pair.cut(numbers).referred == (0, 5), "they are as they were"
    for lines, known in ((LEAST_LINES - 1, 0), (LEAST_LINES, 1)):
        pair.disk[20] = pair.memory[0]
        pair.disk[20, : 64 * lines] ^= 255
        pair.reads.note(written(20, pair.disk[20:21]), 0)
        pair.memory[0] = pair.disk[20]
        assert referred(pair.cut([0])) == known
    pair.reads.note(written(30, np.zeros((1, PAGE_BYTES), np.uint8)), 0)
    pair.memory[1] = 0
    assert referred(pair.cut([1])) == 0


def test_a_block_that_the_agent_has_not_applied_is_not_referred_to(pair: Pair) -> None:
    pair.disk[3] = noise(1)
    pair.memory[[1, 2]] = pair.disk[[3, 4]]
    pair.reads.told(0)
    assert referred(pair.cut([1, 2], written(3, pair.disk[3:4]))) == 1
    pair.memory[[5, 6]] = pair.disk[[3, 4]]
    assert referred(pair.cut([5, 6])) == 1, "its write waits there"
    pair.reads.told(1)
    pair.memory[[7, 8]] = pair.disk[[3, 4]]
    assert referred(pair.cut([7, 8])) == 2


def test_who_takes_none_gets_none_and_a_new_connection_begins_with_nothing(pair: Pair) -> None:
    def read(number: int) -> int:
        pair.memory[number] = pair.disk[number]
        return referred(pair.cut([number]))

    pair.reads.told(None)
    assert read(1) == 0
    pair.reads.told(0)
    assert read(2) == 1
    pair.reads.forget()
    assert read(3) == 0
    pair.reads.note(written(0, pair.disk), 0)
    assert read(4) == 0, "nothing was said on the new connection"
    pair.reads.told(pair.epoch)
    assert read(5) == 1
    pair.reads.forget()
    pair.reads.told(pair.epoch)
    assert read(6) == 0, "the index is of before"


def test_references_are_made_again_when_the_agent_takes_them_again(pair: Pair) -> None:
    """Its disks were slow for a while. What was written meanwhile is not taken for what it was."""

    def read(block: int, into: int, writes: bytes = b"") -> int:
        pair.memory[into] = pair.disk[block]
        frames = pair.cut(np.array([into]), writes)
        pair.ship(frames)
        return referred(frames)

    old = pair.disk[1].copy()
    pair.reads.told(None)
    assert read(0, 0) == 0
    pair.disk[1:2] = fresh = noise(1)
    assert read(1, 1, written(1, fresh)) == 0
    pair.apply()
    pair.memory[2] = old
    assert referred(pair.cut(np.array([2]))) == 0, "that content is on the disk no more"
    assert read(0, 3) == 1 and read(1, 4) == 1
    pair.apply()
    assert np.array_equal(pair.replica[3:5], pair.memory[3:5])


def test_without_a_cache_of_what_was_sent_references_work_as_well(tmp_path: Path) -> None:
    """`encoding = "full"`: whatever was read is referred to, all else goes whole."""
    pair = Pair(tmp_path / "vm", encoding="full")
    pair.seed()
    for _ in range(10):
        read, into = RNG.integers(0, BLOCKS, 40), np.sort(RNG.permutation(PAGES)[:60])
        pair.memory[into[:40]] = pair.disk[read]
        pair.memory[into[40:], 7] += 1
        frames = pair.cut(into)
        assert referred(frames) == 40
        pair.ship(frames)
        pair.apply()
    assert np.array_equal(pair.replica, pair.memory)
    pair.memory[into[0], 7] ^= 1
    pair.ship(pair.cut(into[:1]))
    pair.memory[into[0]] = pair.disk[read[0]]
    assert referred(pair.cut(into[:1])) == 1, "of a page that goes whole, nothing is known that would be less"


def test_an_epoch_has_so_many_references_at_most(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the agent takes into memory for them, and what is kept here, is bounded."""
    monkeypatch.setattr(disk_reads, "REFERENCES_MAX", 70)
    pair.memory[:100] = pair.disk[:100]
    frames = pair.cut(np.arange(100))
    assert referred(frames) == 70
    pair.ship(frames)
    pair.apply()
    assert np.array_equal(pair.replica, pair.memory)


def test_what_goes_again_goes_without_references_and_is_the_same_epoch(pair: Pair) -> None:
    """After a connection was lost; perhaps because the agent's disk has something else."""
    pair.memory[:40], pair.memory[50] = pair.disk[:40], noise(1)
    frames = pair.cut(np.arange(60), written(60, pair.disk[60:61]))
    assert referred(frames) == 40
    pair.images.apply(written(0, noise(BLOCKS)))
    with pytest.raises(BadFrame, match="is not the page"):
        pair.ship(frames)
    pair.inbox.clear()
    sent: list[tuple[FrameType, bytes]] = []
    stream = SimpleNamespace(
        send_many=lambda many: sent.extend((kind, payload) for kind, _, _, payload in many), close=lambda: None
    )
    outbox = Outbox()
    outbox.ship(frames)
    outbox.attach(cast(Any, stream), 1, 0)
    assert not any(is_reference(payload) for kind, payload in sent if kind is FrameType.PAGES)
    *bulk, (last, _commit) = sent
    assert last is FrameType.COMMIT
    again = frames.without_references()
    assert again.frames == bulk and again.without_references() is again and again.stopped_at_ns == frames.stopped_at_ns
    pair.ship(again)
    pair.apply()
    assert np.array_equal(pair.replica, pair.memory)


def test_pages_that_were_read_count_for_what_they_take_on_the_agent(pair: Pair) -> None:
    pair.memory[:100] = pair.disk[:100]
    frames = pair.cut(np.arange(100))
    pair.inbox = Inbox(100 * PAGE_BYTES)
    with pytest.raises(EpochTooLarge):
        pair.ship(frames)
    pair.inbox = Inbox(102 * PAGE_BYTES)
    pair.ship(frames)


def test_the_cache_remembers_what_was_referred_to() -> None:
    """The next change of such a page is sent as what changed; of one that is not remembered, everything did."""
    cache, content = PageCache(3000, 1024), noise(300)
    numbers = np.arange(300)
    assert (cache.changed_lines(numbers, content) == 64).all()
    for at in range(0, 300, 100):
        cache.remember(numbers[at : at + 100], content[at : at + 100])
    assert not cache.changed_lines(numbers, content).any()
    content[7, 100] ^= 1
    content[7, 4000:] ^= 1
    assert cache.changed_lines(numbers, content).tolist() == [0] * 7 + [3] + [0] * 292
    cache.remember(numbers[:10], content[:10])
    assert not cache.changed_lines(numbers, content).any()
    assert cache.asked == 0, "nobody asked for the delta's sake"


def test_the_initial_sync_is_noted_as_it_is_without_what_was_there_already() -> None:
    """What the agent's older image has is not sent, and is on its disk all the same."""
    data, noted = noise(16), []
    welcome = Welcome("1", "b", 1, 0, False, 500, [1], 9)
    bases = ResyncFilters(welcome, [16 * PAGE_BYTES])
    bases.take(Base(0, 0, hash_table(data.tobytes(), 9)))
    log = SimpleNamespace(failed=None, disk=0, position=lambda: 1, take=lambda _upto, _s: written(0, data))
    sent: list[object] = []
    outbox = SimpleNamespace(seed=sent.append)
    reads = SimpleNamespace(note=lambda raw, epoch: noted.append((raw, epoch)))
    pump = DiskPump([cast(Any, log)], cast(Any, outbox), bases, cast(Any, reads))
    pump._move(cast(Any, log))
    assert noted == [(written(0, data), 0)] and not sent


def test_what_the_agent_says_of_its_disks_is_told_and_a_lost_connection_too() -> None:
    told: list[object] = []
    reads = SimpleNamespace(told=told.append, forget=lambda: told.append("forget"))
    parts: Any = SimpleNamespace(
        require_cut=lambda *_: None, reached=lambda *_: None, post=lambda *_: None
    )  # of the session
    side = AgentSide.__new__(AgentSide)
    side._pipeline = side._metrics = side._mailbox = parts
    side.reads = cast(Any, reads)
    side.on_ack(1, 3, 2)
    side.on_ack(1, 4, None)
    side.on_lost("cut")
    assert told == [2, None, "forget"]
    with pytest.raises(BadFrame, match="acknowledges epoch 4 and says that it has applied 5"):
        side.on_ack(1, 4, 5)
    assert told == [2, None, "forget"]
