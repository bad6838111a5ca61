# SPDX-License-Identifier: Apache-2.0
"""The queue between the log's receiver and the cuts: nothing lost, nothing twice, bounded, never a deadlock."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remusdb.disk.stream import LogStream
from remusdb.errors import DiskError


@given(chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=30), data=st.data())
def test_cuts_anywhere_give_back_the_stream(chunks: list[bytes], data: st.DataObject) -> None:
    stream, whole, taken, at = LogStream(1 << 20), b"", b"", 0
    for chunk in chunks:
        stream.put(chunk)
        whole += chunk
        at = data.draw(st.integers(at, len(whole)))
        taken += stream.take(at, 0)
    assert taken == whole[:at]
    assert stream.pending_bytes == len(whole) - at
    assert taken + stream.take(len(whole), 0) == whole


def test_take_waits_for_what_is_not_here_yet() -> None:
    stream = LogStream(100)
    threading.Timer(0.05, stream.put, [b"x" * 10]).start()
    assert stream.take(10, 5) == b"x" * 10


def test_take_gives_up_and_takes_nothing() -> None:
    stream = LogStream(100)
    stream.put(b"abc")
    started = time.monotonic()
    with pytest.raises(DiskError, match="3 of 4 bytes"):
        stream.take(4, 0.05)
    assert time.monotonic() - started < 2
    assert stream.take(3, 0) == b"abc"


def test_a_position_is_taken_once() -> None:
    stream = LogStream(100)
    stream.put(b"abc")
    stream.take(2, 0)
    with pytest.raises(DiskError, match="already taken"):
        stream.take(1, 0)


def test_a_failed_stream_gives_nothing_and_keeps_the_first_reason() -> None:
    stream = LogStream(100)
    stream.put(b"abc")
    stream.fail("nbdkit ended")
    stream.fail("closed")
    with pytest.raises(DiskError, match="nbdkit ended") as caught:
        stream.take(3, 1)
    assert caught.value.hint


def test_failing_wakes_a_take() -> None:
    stream = LogStream(100)
    threading.Timer(0.05, stream.fail, ["gone"]).start()
    with pytest.raises(DiskError, match="gone"):
        stream.take(1, 30)


class Receiver:
    """A thread that puts 10 bytes at a time, as room allows."""

    def __init__(self, stream: LogStream, total: int) -> None:
        self.stream, self.total = stream, total
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        for at in range(0, self.total, 10):
            self.stream.wait_for_room()
            self.stream.put(bytes([at % 251]) * 10)

    def settle(self) -> None:
        """Wait until it is blocked, or done."""
        self.thread.join(0.1)


def test_the_receiver_stops_at_the_bound_and_goes_on_after_a_take() -> None:
    stream = LogStream(100)
    receiver = Receiver(stream, 1000)
    receiver.settle()
    assert stream.pending_bytes == 100
    assert stream.pressed
    stream.take(50, 1)
    receiver.settle()
    assert stream.pending_bytes == 100


def test_a_take_beyond_the_bound_opens_it() -> None:
    stream = LogStream(100)
    receiver = Receiver(stream, 1000)
    receiver.settle()
    assert len(stream.take(700, 5)) == 700
    receiver.settle()
    assert stream.pending_bytes == 100


def test_no_bound_while_a_cut_is_made() -> None:
    stream = LogStream(100)
    receiver = Receiver(stream, 1000)
    receiver.settle()
    with stream.unbounded():
        receiver.thread.join(5)
        assert stream.pending_bytes == 1000
    assert stream.pressed


def test_failing_frees_a_receiver_that_waits_for_room() -> None:
    stream = LogStream(10)
    stream.put(b"x" * 10)
    waiter = threading.Thread(target=stream.wait_for_room)
    waiter.start()
    stream.fail("closed")
    waiter.join(5)
    assert not waiter.is_alive()
