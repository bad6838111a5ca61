# SPDX-License-Identifier: Apache-2.0
"""Commit protection in the gate's queue: what may go early goes in the order of its flow, and never without a lease."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from remusdb.net.hold import HoldQueue

LONG = 1000.0


@dataclass(eq=False)
class Flow:
    """As the queue sees one."""

    waits: int = 0


@dataclass
class Judged:
    """As the rule says it."""

    flow: Flow | None
    early: bool


@dataclass
class Rule:
    """Frames are `flow, may`, and two bytes of a number: one that may goes early if nothing of its flow waits."""

    flows: dict[int, Flow] = field(default_factory=dict)

    def judge(self, frame: bytes, now: float) -> Judged:
        del now
        flow = self.flows.setdefault(frame[0], Flow())
        early = bool(frame[1]) and not flow.waits
        flow.waits += not early
        return Judged(flow, early)

    def left(self, flow: Flow, count: int = 1) -> None:
        flow.waits -= count
        assert flow.waits >= 0

    def open_flows(self) -> list[object]:
        return []

    def forget_all(self) -> None:
        self.flows.clear()


def queue_of(max_bytes: int = 1 << 20) -> HoldQueue:
    queue = HoldQueue(max_bytes, Rule())  # type: ignore[arg-type]
    queue.hold()
    return queue


def frame(flow: int, may: bool, number: int) -> bytes:
    return bytes([flow, may]) + number.to_bytes(2, "big")


def send_all(queue: HoldQueue, now: float) -> list[bytes]:
    """As the gate process does it."""
    gone = []
    queue.hold_back(now)
    while queue.early:
        held = queue.early.popleft()
        queue.sent_early(held, ok=True)
        gone.append(held.frame)
    while queue.sending:
        held = queue.sending.popleft()
        queue.sent(held, ok=True)
        queue.left(held)
        gone.append(held.frame)
    return gone


def test_nothing_goes_early_before_an_epoch_is_committed() -> None:
    queue = queue_of()
    queue.accept([frame(1, True, 1)], now=0.0)
    assert send_all(queue, 0.0) == []


def test_what_may_goes_early_while_the_lease_runs() -> None:
    queue = queue_of()
    queue.release(1, early_until=10.0)
    queue.accept([frame(1, True, 1), frame(1, False, 2), frame(1, True, 3), frame(2, True, 4)], now=5.0)
    assert send_all(queue, 5.0) == [frame(1, True, 1), frame(2, True, 4)]


def test_what_was_to_go_early_waits_when_the_gate_stood_still_until_the_lease_was_over() -> None:
    queue = queue_of()
    queue.release(1, early_until=10.0)
    queue.accept([frame(1, True, 1)], now=9.9)
    assert send_all(queue, 10.1) == []
    queue.accept([frame(1, True, 2)], now=10.2)
    queue.mark(2)
    queue.release(2, early_until=20.0)
    assert send_all(queue, 10.3) == [frame(1, True, 1), frame(1, True, 2)]
    queue.accept([frame(1, True, 3)], now=10.4)
    assert send_all(queue, 10.4) == [frame(1, True, 3)]


def test_the_lease_ends_with_the_hold() -> None:
    queue = queue_of()
    queue.release(1, early_until=LONG)
    queue.drop_held()
    queue.accept([frame(1, True, 1)], now=0.0)
    assert send_all(queue, 0.0) == []
    queue.open_all()
    queue.hold()
    queue.accept([frame(1, True, 2)], now=0.0)
    assert frame(1, True, 2) not in send_all(queue, 0.0)


def test_what_follows_a_frame_that_was_dropped_waits() -> None:
    queue = queue_of(max_bytes=8)
    queue.release(1, early_until=LONG)
    queue.accept([frame(1, False, 1), frame(1, False, 2), frame(1, False, 3)], now=0.0)
    assert queue.dropped == 1
    queue.mark(2)
    queue.release(2, early_until=LONG)
    send_all(queue, 0.0)
    queue.accept([frame(1, True, 4)], now=0.0)  # the dropped one, which opened the transaction, was not committed
    assert send_all(queue, 0.0) == []


def test_what_may_go_early_does_not_overtake_what_was_just_released_of_its_flow() -> None:
    queue = queue_of()
    queue.accept([frame(1, True, 1)], now=0.0)
    queue.hold_back(0.0)
    queue.mark(1)
    queue.release(1, LONG)
    queue.accept([frame(1, True, 2)], now=0.0)
    assert send_all(queue, 0.0) == [frame(1, True, 1)]


def test_what_waits_for_a_lease_waits_for_its_own_epoch() -> None:
    """The last epoch before a switchover names no connections: what comes after its cut must not leave with it."""
    queue = queue_of()
    queue.accept([frame(2, False, 1)], now=0.0)
    queue.mark(1)
    queue.accept([frame(1, True, 2)], now=0.0)
    queue.hold_back(0.0)
    queue.release(1, 0.0)
    assert send_all(queue, 0.0) == [frame(2, False, 1)]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("frame"), st.integers(2, 7)),  # twice the flow, and one where it may
        st.tuples(st.just("commit"), st.integers(0, 3)),  # how long the lease is
        st.tuples(st.just("send"), st.just(0)),
        st.tuples(st.just("time"), st.integers(1, 4)),
    ),
    max_size=60,
)


@given(STEPS)
def test_no_schedule_reorders_a_flow_or_lets_what_must_wait_out(steps: list[tuple[str, int]]) -> None:
    queue = queue_of()
    now, epoch, number, lease = 0.0, 0, 0, 0.0
    cut: dict[bytes, int] = {}  # the frames that must wait, and the epoch they belong to
    came: dict[int, list[bytes]] = {}
    gone: dict[int, list[bytes]] = {}
    for step, value in steps:
        if step == "frame":
            flow = value // 2
            number += 1
            made = frame(flow, bool(value % 2), number)
            came.setdefault(flow, []).append(made)
            cut[made] = epoch + 1
            queue.accept([made], now)
        elif step == "commit":
            epoch += 1
            queue.mark(epoch)
            lease = now + value
            queue.release(epoch, lease)
        elif step == "time":
            now += value
        else:
            for made in send_all(queue, now):
                gone.setdefault(made[0], []).append(made)
                assert cut[made] <= epoch or (made[1] and now < lease)
    for flow, sent in gone.items():
        assert sent == came[flow][: len(sent)]
