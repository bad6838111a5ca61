# SPDX-License-Identifier: Apache-2.0
"""When an agent's looks at the time become a verdict: by what the link has shown, and never by a late look."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from remusdb.config import Failover
from remusdb.core.beats import Offer
from remusdb.core.patience import LEARN_S
from remusdb.core.standby import Phase
from remusdb_agents.backup import hearing as hearing_module
from remusdb_agents.backup import lookout as module
from remusdb_agents.backup.ears import Voice
from remusdb_agents.backup.hearing import Hearing
from remusdb_agents.backup.lookout import Lookout

LOOK_S = 0.02


def nothing(_datagrams: bool) -> bool:
    return False


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def steady(self, lookout: Lookout, for_s: float) -> None:
        """The primary is heard at every look."""
        for _ in range(round(for_s / LOOK_S)):
            self.now += LOOK_S
            assert lookout.look(Phase.READY, self.now, nothing) == "heard"

    def silent_after_s(self, lookout: Lookout, excused: bool = False) -> float:
        """Nothing is heard any more: after how long that is a verdict."""
        last = self.now
        while lookout.look(Phase.READY, last, lambda _datagrams: excused) != "silent":
            self.now += LOOK_S
            assert self.now < last + 60, "never"
        return self.now - last


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_primary_that_was_always_heard_is_missed_after_three_heartbeats(clock: Clock) -> None:
    lookout = Lookout(Failover())
    lookout.follow(145)
    clock.steady(lookout, LEARN_S + 1)
    assert lookout.limit_ms == 435
    assert clock.silent_after_s(lookout) == pytest.approx(0.435, abs=LOOK_S)


@pytest.mark.parametrize(("adaptive", "steady_s"), [(False, LEARN_S + 1), (True, LEARN_S - 1)], ids=["off", "new"])
def test_silence_ms_holds_where_nothing_was_learned(clock: Clock, adaptive: bool, steady_s: float) -> None:
    lookout = Lookout(Failover(adaptive=adaptive))
    lookout.follow(100)
    clock.steady(lookout, steady_s)
    assert clock.silent_after_s(lookout) == pytest.approx(0.5, abs=LOOK_S)


def test_a_new_connection_is_learned_again(clock: Clock) -> None:
    lookout = Lookout(Failover())
    lookout.follow(100)
    clock.steady(lookout, LEARN_S + 1)
    lookout.follow(100)
    clock.steady(lookout, 1.0)
    assert lookout.limit_ms == 500


def test_a_late_look_is_no_verdict(clock: Clock) -> None:
    """The agent did not run for a while: what the primary said meanwhile may still wait to be read."""
    lookout = Lookout(Failover())
    lookout.follow(100)
    clock.steady(lookout, LEARN_S + 1)
    last = clock.now
    clock.now += 5.0
    assert lookout.look(Phase.READY, last, nothing) == "heard"
    for _ in range(2):
        clock.now += 0.14
        assert lookout.look(Phase.READY, last, nothing) != "silent"


def test_a_silence_with_another_cause_is_no_early_verdict_and_a_verdict_all_the_same(clock: Clock) -> None:
    lookout = Lookout(Failover())
    lookout.follow(100)
    clock.steady(lookout, LEARN_S + 1)
    assert clock.silent_after_s(lookout, excused=True) == pytest.approx(0.5, abs=LOOK_S)


def test_the_initial_sync_teaches_nothing(clock: Clock) -> None:
    lookout = Lookout(Failover())
    lookout.follow(100)
    for _ in range(40):
        clock.now += 0.3
        lookout.look(Phase.SEEDING, clock.now, nothing)
    clock.steady(lookout, 1.0)
    assert lookout.limit_ms == 500
    clock.steady(lookout, LEARN_S)
    assert lookout.limit_ms == 420


def test_a_lost_connection_is_no_excuse_for_a_primary_that_is_heard_by_datagrams(clock: Clock) -> None:
    lookout = Lookout(Failover())
    lookout.follow(100)
    for _ in range(round((LEARN_S + 1) / LOOK_S)):
        clock.now += LOOK_S
        lookout.look(Phase.READY, clock.now, nothing, clock.now)
    assert lookout.datagrams and lookout.limit_ms == 380
    hearing, last = Hearing(), clock.now
    while lookout.look(Phase.READY, last, hearing.excused, last) != "silent":
        clock.now += LOOK_S
    assert clock.now - last == pytest.approx(0.38, abs=LOOK_S + 0.001)


def test_datagrams_are_signs_of_life_while_there_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing_module, "time", SimpleNamespace(monotonic=lambda: 100.0))
    hearing, voice = Hearing(), Voice(Offer(1, bytes(32)), 1)
    stream: Any = SimpleNamespace(unread=False, last_heard=100.0)
    hearing.follow(stream, voice)
    hearing.leave()
    voice.heard_at = 100.4
    assert hearing.heard() == 100.4
    hearing.follow(stream, None)
    assert hearing.datagram_at == 0.0, "those of an older connection count no more"


def test_a_lost_connection_and_bytes_that_nobody_read_excuse_a_silence() -> None:
    hearing = Hearing()
    assert hearing.excused(False), "no connection"
    stream: Any = SimpleNamespace(unread=False, last_heard=0.0)
    hearing.follow(stream)
    assert not hearing.excused(False)
    stream.unread = True
    assert hearing.excused(False)
    stream.unread = False
    hearing.leave()
    assert hearing.excused(False)
