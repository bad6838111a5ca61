# SPDX-License-Identifier: Apache-2.0
"""What a primary may have the agent hold: the open epoch, and epochs that it sends without being acknowledged any."""

from __future__ import annotations

import pytest

from remusdb.core.messages import Commit, pack
from remusdb.core.owed import WINDOW_MAX, Hopeless, Owed, Unbridled
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import BadFrame
from remusdb_agents.backup.inbox import FRAME_COST_BYTES, EpochTooLarge, Inbox

MOST = 1 << 20


def test_a_frame_without_a_byte_takes_room_too() -> None:
    inbox, frame = Inbox(MOST), Frame(FrameType.PAGES, 1, 1, b"")

    def fill() -> None:
        for _ in range(2 * MOST // FRAME_COST_BYTES):
            inbox.add(frame)

    with pytest.raises(EpochTooLarge, match=r"limits\.epoch_max_bytes"):
        fill()
    assert len(inbox._frames) <= MOST // FRAME_COST_BYTES + 1


def test_what_commit_counts_is_payload_alone() -> None:
    inbox = Inbox(MOST)
    for size in (0, 5, 100):
        inbox.add(Frame(FrameType.WRITES, 1, 1, bytes(size)))
    commit = Commit(frames=3, payload_bytes=105, addresses=[])
    whole = inbox.close(Frame(FrameType.COMMIT, 1, 1, pack(commit)), 0)
    assert whole.cost_bytes == 4 * FRAME_COST_BYTES + 105
    with pytest.raises(BadFrame, match="0 frames of 0 bytes came"):
        inbox.close(Frame(FrameType.COMMIT, 1, 2, pack(commit)), 0)


def test_a_primary_has_so_many_epochs_outstanding_at_most() -> None:
    owed = Owed()
    for epoch in range(1, WINDOW_MAX + 1):
        owed.came(epoch)
        owed.wait(epoch)
    with pytest.raises(Unbridled, match=f"epoch {WINDOW_MAX + 1} came, with 0 acknowledged"):
        owed.came(WINDOW_MAX + 1)
    owed.told(WINDOW_MAX)
    assert owed.waits is None
    owed.came(2 * WINDOW_MAX)
    with pytest.raises(Unbridled):
        owed.came(2 * WINDOW_MAX + 1)


def test_the_window_is_the_largest_that_a_primary_may_be_told_to_use() -> None:
    import msgspec

    from remusdb.config import Protection

    assert msgspec.convert({"window": WINDOW_MAX}, Protection).window == WINDOW_MAX
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"window": WINDOW_MAX + 1}, Protection)


def test_an_epoch_has_one_device_state_at_most() -> None:
    """A few bytes of it may be 64 MiB here."""
    inbox = Inbox(MOST)
    for epoch in (1, 2):
        inbox.add(Frame(FrameType.DEVICES, 1, epoch, b"state"))
        inbox.add(Frame(FrameType.PAGES, 1, epoch, b"pages"))
        with pytest.raises(Hopeless, match="device states"):
            inbox.add(Frame(FrameType.DEVICES, 1, epoch, b"state"))
        inbox.clear()
