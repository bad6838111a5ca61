# SPDX-License-Identifier: Apache-2.0
"""One event of a VM at a time, each worked off by who posted it, and nobody's turn is held by what takes its time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from remusdb.core import backup_effects as do
from remusdb.core import backup_events as event
from remusdb.core.standby import Phase
from remusdb_agents.backup.desk import Desk
from tests.waiting import eventually

WITHIN_S = 20.0


class Core:
    """Decides what it is told to, by the reason of a `Broken`."""

    rereads = True

    def __init__(self) -> None:
        self.decides: dict[str, Any] = {}
        self.phase = Phase.EMPTY
        self.heard: list[object] = []

    def handle(self, told: event.Event) -> Iterator[do.Effect]:
        self.heard.append(told)
        if isinstance(told, event.Broken):
            yield from self.decides[told.reason]()


class Room:
    """A desk, and what was done at it."""

    def __init__(self) -> None:
        core: Any = Core()
        self.core = core
        self.done: list[Any] = []
        self.may, self.begun = threading.Event(), threading.Event()
        self.desk = Desk(core, event.Durable)
        self.desk.staff(self.done.append, self._begin)

    def _begin(self, effect: do.Begun) -> event.Event | None:
        self.done.append(effect)
        self.begun.set()
        assert not isinstance(effect, do.Drain) or self.may.wait(WITHIN_S)
        return event.Drained() if isinstance(effect, do.Drain) else None

    def tell(self, reason: str) -> None:
        self.desk.post(event.Broken(1, reason))

    def apart(self, reason: str) -> threading.Thread:
        thread = threading.Thread(target=self.tell, args=(reason,), daemon=True)
        thread.start()
        return thread


def test_what_takes_its_time_is_done_after_the_turn_and_its_outcome_is_an_event() -> None:
    room = Room()
    room.core.decides["slow"] = lambda: iter([do.Drain(), do.ReleaseRoom()])
    room.core.decides["other"] = lambda: iter([do.Learn(2)])
    thread = room.apart("slow")
    assert room.begun.wait(WITHIN_S) and not room.desk.idle
    room.tell("other")  # does not wait
    room.may.set()
    thread.join(WITHIN_S)
    assert room.done == [do.ReleaseRoom(), do.Drain(), do.Learn(2)] and room.desk.idle
    assert room.core.heard[-1] == event.Drained()


def test_what_was_begun_is_done_although_the_decision_fails() -> None:
    room = Room()

    def fails() -> Iterator[do.Effect]:
        yield do.CloseStandby(1)
        raise ZeroDivisionError

    room.core.decides["fails"] = fails
    with pytest.raises(ZeroDivisionError):
        room.tell("fails")
    assert room.done == [do.CloseStandby(1)] and room.desk.idle


def test_an_effect_that_fails_is_raised_where_it_stands() -> None:
    room = Room()

    def perform(effect: do.AtOnce) -> None:
        if isinstance(effect, do.Learn):
            raise ZeroDivisionError
        room.done.append(effect)

    room.desk.staff(perform, room._begin)

    def tries() -> Iterator[do.Effect]:
        try:
            yield do.Learn(2)
            pytest.fail("went on")
        except ZeroDivisionError:
            yield do.ReleaseRoom()

    room.core.decides["tries"] = tries
    room.tell("tries")
    assert room.done == [do.ReleaseRoom()]


def test_an_event_in_the_middle_of_another_is_refused() -> None:
    room = Room()
    room.desk.staff(lambda _effect: room.tell("inner"), room._begin)
    room.core.decides["outer"] = lambda: iter([do.ReleaseRoom()])
    with pytest.raises(RuntimeError, match="in the middle"):
        room.tell("outer")
    room.core.decides["next"] = lambda: iter([])
    room.tell("next")


def test_what_comes_too_early_is_handed_over_again() -> None:
    room = Room()
    early = event.Stop()
    room.core.phase = Phase.STARTING
    room.core.decides["waits"] = lambda: iter([do.Later(early)])
    room.core.decides["other"] = lambda: iter([])
    thread = room.apart("waits")
    eventually(lambda: room.core.heard)
    room.tell("other")
    assert thread.is_alive() and early not in room.core.heard
    room.core.phase = Phase.EMPTY
    room.tell("other")
    thread.join(WITHIN_S)
    assert room.core.heard[-1] == early


def test_a_thread_of_its_own_keeps_the_desk_busy_until_its_end() -> None:
    room = Room()
    room.desk.apart(lambda: room.may.wait(WITHIN_S), "apart")
    assert not room.desk.idle
    room.may.set()
    eventually(lambda: room.desk.idle)


def test_the_file_is_read_before_what_depends_on_it() -> None:
    room = Room()
    room.desk.post(event.Forget(1))
    room.desk.post(event.Stop())
    assert room.core.heard == [event.Read(event.Durable()), event.Forget(1), event.Stop()]
