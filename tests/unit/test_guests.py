# SPDX-License-Identifier: Apache-2.0
"""How many connections of one peer wait for their session, and who goes when there are too many."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

from remusdb.core.messages import Refuse, unpack
from remusdb.core.wire import FrameType
from remusdb.errors import BadFrame
from remusdb.transport.stream import FrameStream
from remusdb_agents.backup.guests import MOST, SPARE, Guests
from tests.waiting import eventually

WITHIN_S = 30.0


class Stream:
    """A connection, as far as it is looked at."""

    def __init__(self, name: str) -> None:
        self.peer_name, self.peer_address = name, "192.0.2.1:1"
        self.spoken = False
        self.sent: list[Refuse] = []
        self.closed = threading.Event()

    def send(self, kind: FrameType, _term: int, _epoch: int, payload: bytes) -> None:
        assert kind is FrameType.REFUSE
        self.sent.append(unpack(Refuse, payload))

    def close(self, drain_s: float = 0.0) -> None:
        self.closed.set()


class House:
    """Guests whose sessions last until their stream is closed."""

    def __init__(self, most: int = MOST) -> None:
        self.replicas: list[Any] = []
        self.guests = Guests(self._session, lambda: self.replicas, most)
        self.streams: list[Stream] = []

    def keep(self, name: str, *streams: Stream | None) -> None:
        """VMs of this peer, and who feeds them."""
        self.replicas += [SimpleNamespace(stream=one, peer=name) for one in streams]

    def _session(self, stream: FrameStream) -> None:
        assert cast(Stream, stream).closed.wait(WITHIN_S)

    def come(self, name: str, count: int, *, spoken: bool = False) -> list[Stream]:
        came = []
        for _ in range(count):
            stream = Stream(name)
            stream.spoken = spoken
            threading.Thread(target=self.serve, args=(stream,), daemon=True).start()
            eventually(partial(self._is_in_or_out, stream))
            came.append(stream)
        self.streams += came
        return came

    def _is_in_or_out(self, stream: Stream) -> bool:
        return cast(Any, stream) in self.guests._open or stream.closed.is_set()

    def serve(self, stream: Stream) -> None:
        try:
            self.guests.serve(cast(Any, stream))
        except BadFrame:
            stream.closed.set()

    def leave(self) -> None:
        for stream in self.streams:
            stream.closed.set()
        eventually(lambda: not self.guests._open)


def gone(streams: list[Stream]) -> list[bool]:
    return [stream.closed.is_set() for stream in streams]


def test_the_oldest_that_said_nothing_goes_for_the_newest() -> None:
    house = House()
    other = house.come("gamma", 3)
    silent = house.come("alpha", SPARE + 5)
    eventually(lambda: sum(gone(silent)) >= 5)
    assert gone(silent) == [True] * 5 + [False] * SPARE
    assert gone(other) == [False] * 3
    assert len(house.guests._open) == SPARE + 3
    house.leave()


def test_where_all_have_spoken_the_newcomer_is_told() -> None:
    house = House()
    spoken = house.come("alpha", SPARE, spoken=True)
    [late] = house.come("alpha", 1)
    assert late.closed.wait(WITHIN_S)
    assert "whose sessions are not agreed on" in late.sent[0].reason and "try again" in late.sent[0].hint
    assert not any(gone(spoken)) and not any(gone(house.come("gamma", SPARE)))
    house.leave()


def test_those_that_follow_a_vm_do_not_count_and_each_vm_gives_room_for_one_more() -> None:
    house = House()
    house.keep("alpha", *house.come("alpha", SPARE))
    assert not any(gone(house.come("alpha", 2 * SPARE, spoken=True)))
    house.keep("alpha", *[None] * 40)  # a blip of the link: all of them come again at once
    assert not any(gone(house.come("alpha", 40, spoken=True)))
    house.leave()


def test_all_peers_together_are_bounded() -> None:
    house = House(most=10)
    came = [house.come(f"host{number}", 1)[0] for number in range(15)]
    eventually(lambda: sum(gone(came)) >= 5)
    assert gone(came) == [True] * 5 + [False] * 10
    house.leave()


def test_nothing_is_left_of_those_that_ended() -> None:
    house = House()
    house.come("alpha", SPARE)
    house.leave()
    assert not house.guests._open
