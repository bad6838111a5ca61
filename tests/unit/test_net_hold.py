# SPDX-License-Identifier: Apache-2.0
"""The tap gate's queue: against any schedule, nothing goes early, nothing is reordered, nothing is unbounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remusdb.net.hold import EpochOrder, HoldQueue

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("frames"), st.integers(1, 5)),
        st.tuples(st.just("mark"), st.integers(1, 3)),  # by how much the epoch grows
        st.tuples(st.just("release"), st.integers(0, 12)),
        st.tuples(st.just("send"), st.integers(1, 4)),
        st.tuples(st.just("drop"), st.just(0)),
    ),
    max_size=60,
)


def name(number: int) -> bytes:
    return number.to_bytes(8, "big")


@given(STEPS)
def test_no_schedule_sends_an_unreleased_frame(steps: list[tuple[str, int]]) -> None:
    queue = HoldQueue(max_bytes=8 * 40)
    queue.hold()
    number, epoch, may_send_below, sent = 0, 0, 0, -1
    cuts: dict[int, int] = {}
    for step, value in steps:
        if step == "frames":
            queue.accept([name(number + at) for at in range(value)])
            number += value
        elif step == "mark":
            epoch += value
            queue.mark(epoch)
            cuts[epoch] = number
        elif step == "release":
            queue.release(value)
            may_send_below = max([may_send_below] + [cut for at, cut in cuts.items() if at <= value])
        elif step == "drop":
            queue.drop_held()
        else:
            for _ in range(min(value, len(queue.sending))):
                held = queue.sending.popleft()
                queue.sent(held, ok=True)
                assert sent < int.from_bytes(held.frame, "big") < may_send_below
                sent = int.from_bytes(held.frame, "big")
        assert 0 <= queue.held_bytes == 8 * queue.held_frames <= 8 * 40
        assert queue.held_frames + queue.released + queue.dropped == number


def test_passing_queue_sends_at_once() -> None:
    queue = HoldQueue(100)
    queue.accept([b"a", b"b"])
    assert [held.frame for held in queue.sending] == [b"a", b"b"]


def test_a_small_frame_does_not_overtake_one_that_did_not_fit() -> None:
    queue = HoldQueue(10)
    queue.hold()
    queue.accept([b"12345678", b"1234", b"1"])
    assert (queue.held_frames, queue.dropped) == (1, 2)


def test_open_all_keeps_the_order() -> None:
    queue = HoldQueue(100)
    queue.hold()
    for epoch in (1, 2, 3):
        queue.accept([name(epoch)])
        if epoch < 3:
            queue.mark(epoch)
    queue.release(1)
    queue.open_all()
    queue.accept([name(4)])
    assert [held.frame for held in queue.sending] == [name(number) for number in (1, 2, 3, 4)]


def test_epochs_must_grow_until_held_anew() -> None:
    queue = HoldQueue(100)
    queue.hold()
    queue.mark(5)
    with pytest.raises(EpochOrder):
        queue.mark(5)
    queue.open_all()
    queue.hold()
    queue.mark(1)
