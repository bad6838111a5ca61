# SPDX-License-Identifier: Apache-2.0
"""The applier's freeze: it stands still between two epochs, acknowledgements do not wait, a takeover comes first."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from remusdb.core.wire import Frame, FrameType
from remusdb.errors import RefusedForSafety
from remusdb_agents.backup.applier import BACKLOG_EPOCHS, Applier, Frozen
from remusdb_agents.backup.disks.images import ReplicaImages
from remusdb_agents.backup.inbox import FRAME_COST_BYTES, WholeEpoch
from tests.waiting import eventually

LIMIT = 10 * (2 * FRAME_COST_BYTES + 100)  # ten epochs of a frame of 100 bytes


MOST = 1 << 20


class SlowImages:
    """Each epoch has one record; applying it waits until it may."""

    def __init__(self) -> None:
        self.may = threading.Semaphore(0)
        self.begun = 0

    def apply(self, _records: bytes) -> None:
        self.begun += 1
        assert self.may.acquire(timeout=10)


class Bench:
    """An applier whose epochs are applied when the test says so."""

    def __init__(self) -> None:
        self.images = SlowImages()
        self.moved: list[int] = []
        self.crowded_when_moved: list[bool] = []
        self.applier = Applier(cast(Any, None), cast(ReplicaImages, self.images), self._moved, self._broken, MOST)

    def _moved(self, epoch: WholeEpoch) -> None:
        self.moved.append(epoch.epoch)
        self.crowded_when_moved.append(self.applier.crowded)

    def _broken(self, exc: Exception) -> None:
        raise AssertionError(exc)

    def put(self, *epochs: int, size: int = 100) -> None:
        for epoch in epochs:
            frame = Frame(FrameType.WRITES, 1, epoch, b"x" * size)
            self.applier.put(WholeEpoch(1, epoch, [frame], []))

    def allow(self, count: int, moved: int) -> None:
        """Let so many epochs be applied; `moved` is the newest then."""
        for _ in range(count):
            self.images.may.release()
        eventually(lambda: self.applier.epoch == moved)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr("remusdb_agents.backup.applier.decode_writes", lambda payload: payload)
    made = Bench()
    yield made
    made.images.may.release(1000)
    made.applier.close()


def test_freeze_waits_for_the_epoch_in_hand_and_stands_still(bench: Bench) -> None:
    bench.put(1, 2)
    bench.allow(1, 1)
    eventually(lambda: bench.images.begun == 2)
    threading.Timer(0.1, bench.images.may.release).start()
    with bench.applier.freeze(LIMIT) as frozen:
        assert (frozen.epoch, bench.moved) == (2, [1, 2])
        bench.put(3)
        bench.images.may.release()
        time.sleep(0.05)
        assert bench.moved == [1, 2] and bench.images.begun == 2 and frozen.waiting == 1
        frozen.require()
    eventually(lambda: bench.moved == [1, 2, 3])


def test_whoever_breaks_a_freeze_does_what_was_asked_for_at_once(bench: Bench) -> None:
    """A takeover must not wait until somebody has noticed; and who asks too late is told."""
    bench.put(1)
    bench.allow(1, 1)
    called: list[str] = []
    with bench.applier.freeze(LIMIT) as frozen:
        frozen.on_broken(lambda: called.append("killed"))
        assert called == []
        assert bench.applier.wait_empty(1) and called == ["killed"]
        with pytest.raises(RefusedForSafety, match="takes the VM over"):
            frozen.on_broken(lambda: called.append("too late"))
    assert called == ["killed"]


def test_before_the_first_epoch_there_is_nothing_to_freeze(bench: Bench) -> None:
    with pytest.raises(RefusedForSafety), bench.applier.freeze(LIMIT, 0.05):
        pass
    bench.put(1)
    bench.allow(1, 1)
    with bench.applier.freeze(LIMIT) as frozen:
        assert frozen.epoch == 1


def test_an_epoch_that_takes_too_long_is_no_freeze(bench: Bench) -> None:
    bench.put(1, 2)
    bench.allow(1, 1)
    eventually(lambda: bench.images.begun == 2)
    with pytest.raises(RefusedForSafety, match="did not come to the end"), bench.applier.freeze(LIMIT, 0.05):
        pass
    bench.put(3)
    bench.allow(2, 3)


def test_while_frozen_bytes_count_and_not_epochs(bench: Bench) -> None:
    bench.put(1)
    bench.allow(1, 1)
    with bench.applier.freeze(LIMIT):
        bench.put(*range(2, 12))
        assert not bench.applier.crowded, "ten epochs of 100 bytes are the limit itself"
        bench.put(12)
        assert bench.applier.crowded


def test_the_backlog_is_worked_off_by_the_same_rule(bench: Bench) -> None:
    """Acknowledgements flow while what a freeze left is applied; from BACKLOG_EPOCHS on the old rule holds again."""
    bench.put(1)
    bench.allow(1, 1)
    with bench.applier.freeze(LIMIT):
        bench.put(*range(2, 12))
    bench.allow(1, 2)
    assert not bench.applier.crowded and bench.crowded_when_moved[-1] is False
    bench.allow(9 - BACKLOG_EPOCHS, 11 - BACKLOG_EPOCHS)
    bench.put(12)
    assert bench.applier.crowded, "five epochs wait, and none of them because of a freeze"


def test_an_acknowledgement_that_waited_at_the_limit_is_not_forgotten(bench: Bench) -> None:
    """One epoch beyond the limit, alone: once it moves nothing may look crowded, or its ACK would never be sent."""
    bench.put(1)
    bench.allow(1, 1)
    with bench.applier.freeze(LIMIT):
        bench.put(2, size=LIMIT + 1)
        assert bench.applier.crowded
    bench.allow(1, 2)
    assert bench.crowded_when_moved[-1] is False


def test_a_takeover_breaks_the_freeze_and_ends_them(bench: Bench) -> None:
    bench.put(1)
    bench.allow(1, 1)
    with bench.applier.freeze(LIMIT) as frozen:
        bench.put(2)
        bench.images.may.release()
        assert bench.applier.wait_empty(5), "it waited for the freeze"
        assert bench.moved == [1, 2]
        with pytest.raises(RefusedForSafety, match="takes the VM over"):
            frozen.require(5)
    with pytest.raises(RefusedForSafety, match="takes the VM over"), bench.applier.freeze(LIMIT):
        pass


def test_a_takeover_does_not_wait_for_a_freeze_that_waits(bench: Bench) -> None:
    bench.put(1, 2)
    bench.allow(1, 1)
    eventually(lambda: bench.images.begun == 2)
    said: list[object] = []

    def freeze() -> None:
        try:
            with bench.applier.freeze(LIMIT) as frozen:
                said.append(frozen)
        except RefusedForSafety as exc:
            said.append(exc)

    thread = threading.Thread(target=freeze)
    thread.start()
    time.sleep(0.05)
    assert not bench.applier.wait_empty(0.05)
    thread.join(5)
    assert isinstance(said[0], RefusedForSafety) and not isinstance(said[0], Frozen)
    bench.images.may.release()
    assert bench.applier.wait_empty(5)


def test_the_end_of_the_session_breaks_the_freeze(bench: Bench) -> None:
    bench.put(1)
    bench.allow(1, 1)
    with bench.applier.freeze(LIMIT) as frozen:
        bench.applier.close()
        with pytest.raises(RefusedForSafety, match="given up"):
            frozen.require()


def test_one_freeze_at_a_time(bench: Bench) -> None:
    bench.put(1)
    bench.allow(1, 1)
    with bench.applier.freeze(LIMIT):
        with pytest.raises(RefusedForSafety), bench.applier.freeze(LIMIT):
            pass
        assert bench.applier.crowded is False
    with bench.applier.freeze(LIMIT):
        pass


def test_of_a_primary_that_does_not_wait_no_more_is_read(bench: Bench) -> None:
    """What waits is bounded by bytes; the reader goes on as epochs are applied, or when its connection was replaced."""
    bench.put(1, 2, 3, size=MOST // 2)
    eventually(lambda: bench.images.begun == 1)
    assert bench.applier.crowded
    reads, wanted = threading.Event(), True

    def read() -> None:
        bench.applier.await_room(lambda: wanted)
        reads.set()

    threading.Thread(target=read, daemon=True).start()
    assert not reads.wait(0.3)
    bench.allow(2, 2)
    assert reads.wait(20) and not bench.applier.crowded
    bench.put(4, size=MOST)
    reads.clear()
    threading.Thread(target=read, daemon=True).start()
    assert not reads.wait(0.3)
    wanted = False
    assert reads.wait(20)


def test_epochs_without_a_byte_take_room_too(bench: Bench) -> None:
    for epoch in range(1, MOST // FRAME_COST_BYTES + 2):
        bench.applier.put(WholeEpoch(1, epoch, [], []))
    with bench.applier.freeze(1):  # nothing is applied meanwhile
        for epoch in range(MOST // FRAME_COST_BYTES + 2, 2 * MOST // FRAME_COST_BYTES + 4):
            bench.applier.put(WholeEpoch(1, epoch, [], []))
        over = threading.Event()

        def waits() -> None:
            bench.applier.await_room(lambda: True)
            over.set()

        threading.Thread(target=waits, daemon=True).start()
        assert not over.wait(0.3)
    assert over.wait(20)
