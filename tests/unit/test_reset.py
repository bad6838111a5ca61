# SPDX-License-Identifier: Apache-2.0
"""The reset of a connection against a guest that loses, delays and repeats: it ends when the guest's socket is gone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remusdb.core.reset import MOST_S, TELL_AT_S, Out, Reset, Target, Way
from remusdb.core.segments import ACK, RST, End, Segment, build, read

GUEST = End(bytes(6), bytes((10, 0, 0, 1)), 5432)
CLIENT = End(bytes(5) + b"\1", bytes((10, 0, 0, 2)), 40000)
NUMBERS = 1 << 32


class Guest:
    """A socket as RFC 9293 and 5961 have it, of which only numbers are left."""

    def __init__(self, expects: int, sent: int) -> None:
        self.alive, self.expects, self.sent = True, expects, sent

    def take(self, frame: bytes) -> list[Segment]:
        segment = read(frame)
        assert segment is not None
        if not self.alive:
            return [] if segment.flags & RST else [self._says(segment.ack, 0, RST)]
        if segment.flags & RST:
            if segment.seq == self.expects:
                self.alive = False
                return []
            inside = (segment.seq - self.expects) % NUMBERS < 65536
            return [self._says(self.sent, self.expects, ACK)] if inside else []
        return [self._says(self.sent, self.expects, ACK)]

    def _says(self, seq: int, ack: int, flags: int) -> Segment:
        return Segment(GUEST.address, GUEST.port, CLIENT.address, CLIENT.port, seq, ack, flags)


@given(
    st.integers(0, NUMBERS - 1),
    st.integers(0, 1 << 30),
    st.floats(0.0, 0.7),
    st.integers(0, 1 << 32),
    st.integers(0, 3),
)
@settings(deadline=None)
def test_it_ends_with_a_guest_whatever_is_lost_late_or_twice(
    acked: int, ahead: int, loss: float, seed: int, more_requests: int
) -> None:
    chance = random.Random(seed)
    guest = Guest((acked + ahead) % NUMBERS, 77)
    reset = Reset(Target(GUEST, CLIENT, None, 77, acked), 0.0)
    now = 0.0
    on_the_way: list[Segment] = []
    sent: list[Out] = []
    for _ in range(4000):
        if reset.done:
            break
        now = max(now + 0.001, min(reset.due_at, now + 0.01))
        sent = reset.due(now)
        if on_the_way and chance.random() < 0.7:
            segment = on_the_way.pop(chance.randrange(len(on_the_way)))
            assert reset.is_of(segment)
            sent += reset.heard(segment, now)
        if more_requests and guest.alive and chance.random() < 0.1:
            more_requests -= 1
            guest.expects = (guest.expects + 100) % NUMBERS
        for out in sent:
            if out.way is Way.GUEST and chance.random() >= loss:
                on_the_way += guest.take(out.frame) * chance.choice((1, 1, 2))
            assert out.way is Way.GUEST or not guest.alive  # its client is told only of what is true
        assert reset.shut or not guest.alive
        now = now + 0.5 if not on_the_way and chance.random() < 0.3 else now
    assert reset.done
    assert not guest.alive


def test_a_guest_that_stands_still_is_asked_on_and_stays_shut() -> None:
    reset = Reset(Target(GUEST, CLIENT, None, 1, 1), 0.0)
    now, asked = 0.0, 0
    while now < 600:
        now = reset.due_at
        asked += len(reset.due(now))
    assert reset.shut
    assert 500 / MOST_S < asked < 2 * (600 / MOST_S + 20)


def test_a_guest_that_takes_no_reset_is_not_asked_without_end() -> None:
    """Each answer would bring the next question, as fast as both can: a socket that wants signed segments."""
    reset = Reset(Target(GUEST, CLIENT, None, 1, 1), 0.0)
    answer = Segment(GUEST.address, GUEST.port, CLIENT.address, CLIENT.port, 1, 1, ACK)
    sent = sum(len(reset.heard(answer, at / 1e5)) for at in range(100_000))
    assert sent < 500


def test_the_client_is_told_more_than_once() -> None:
    reset = Reset(Target(GUEST, CLIENT, None, 1, 1), 0.0)
    reset.heard(Segment(GUEST.address, 5432, CLIENT.address, 40000, 1, 0, RST), 0.0)
    told = 0
    while not reset.done:
        told += sum(out.way is Way.NETWORK for out in reset.due(reset.due_at))
    assert told == len(TELL_AT_S)


@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize("vlan", [None, 7])
def test_what_is_built_is_read(size: int, vlan: int | None) -> None:
    guest, client = End(bytes(6), bytes([1] * size), 1), End(bytes(6), bytes([2] * size), 2)
    frame = build(guest, client, vlan, 3, 4, ACK, b"data")
    untagged = frame if vlan is None else frame[:12] + frame[16:]
    assert read(untagged) == Segment(guest.address, 1, client.address, 2, 3, 4, ACK)


@given(st.binary(max_size=80))
def test_whatever_the_guest_sends_is_read_or_is_nothing(frame: bytes) -> None:
    read(frame)
