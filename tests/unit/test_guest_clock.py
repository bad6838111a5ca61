# SPDX-License-Identifier: Apache-2.0
"""The clocks of a QEMU that is this very process: three fields of memory, and the device state that holds them."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable
from functools import partial

import pytest

from remusdb.capture import clock as clock_module
from remusdb.capture.clock import GuestClock
from remusdb.capture.clock_fields import Fields
from remusdb.core import clock_stream
from remusdb.core.clock_stream import TICKS, Clocks
from remusdb.errors import VmError
from tests.unit.test_clock_stream import state

RATE = 2.5
MS = 1_000_000


class Qemu:
    """Stops, saves, starts. Its clocks go with the host's while it runs."""

    def __init__(self, kind: str = "tcg") -> None:
        self.stream = state(kind, 1)
        self.where = clock_stream.places(self.stream)
        self.fields = (ctypes.c_int64 * 3)(20 * 10**9, 8 * 10**9, 8 * 10**9)
        self.count = 2 if self.where.kvmclock is None else 3
        self.started = time.monotonic_ns()
        self.saves_something_else = False
        self.clock = GuestClock(os.getpid(), [], kvm=False)

    def addresses(self) -> list[int]:
        return [ctypes.addressof(self.fields) + 8 * index for index in range(self.count)]

    def stop(self) -> None:
        ran = time.monotonic_ns() - self.started
        self.fields[0] += round(ran * RATE)
        self.fields[1] += ran
        self.fields[2] += ran

    def saved(self) -> bytes:
        changed = bytearray(self.stream)
        struct.pack_into(">q", changed, self.where.timer + TICKS, self.fields[0] + self.saves_something_else)
        struct.pack_into(">q", changed, self.where.timer + clock_stream.CLOCK, self.fields[1])
        if self.where.kvmclock is not None:
            struct.pack_into(">q", changed, self.where.kvmclock, self.fields[2])
        return bytes(changed)

    def cut(self, hold_s: float = 0.003, before_repair: Callable[[], None] = lambda: None) -> int | None:
        self.clock.begin()
        self.stop()
        stopped_at, devices = time.monotonic_ns(), self.saved()
        time.sleep(hold_s)
        before_repair()
        self.clock.repair(stopped_at)
        self.started = time.monotonic_ns()
        return self.clock.done(devices)

    def save(self) -> bytes:
        self.cut(0.001)
        return self.saved()

    def late_ms(self, since: tuple[int, int]) -> float:
        """By how much the clock fell behind since (host's, its own), now that it was stopped."""
        return ((time.monotonic_ns() - since[0]) - (self.fields[1] - since[1])) / MS


class Found:
    """In place of the search in a real QEMU."""

    qemu: Qemu
    why = ""

    def __init__(self, *_: object) -> None:
        return

    def copy(self) -> None:
        return

    def look(self, clocks: Clocks) -> None:
        return

    def read_again(self) -> None:
        return

    def found(self, clocks: Clocks) -> Fields:
        if self.why:
            raise VmError(self.why)
        return Fields(os.getpid(), self.qemu.addresses())


@pytest.fixture(params=["tcg", "kvm"])
def qemu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Qemu:
    made = Qemu(request.param)
    monkeypatch.setattr(Found, "qemu", made, raising=False)
    monkeypatch.setattr(clock_module, "Search", Found)
    monkeypatch.setattr(clock_module, "APART_S", 0.05)
    return made


def learned(qemu: Qemu) -> Qemu:
    qemu.clock.learn(qemu.save)
    assert qemu.clock.why_not == ""
    return qemu


def test_cuts_lose_nothing(qemu: Qemu) -> None:
    learned(qemu)
    qemu.cut()
    since = (time.monotonic_ns(), qemu.fields[1])
    for _ in range(20):
        time.sleep(0.01)
        assert qemu.cut(0.01) is not None
    told = qemu.clock.metrics()
    assert told.slow == "" and told.lag_ms is not None
    assert qemu.late_ms(since) < 30, "it lost 200 ms and more"
    assert qemu.fields[0] / qemu.fields[1] == pytest.approx(RATE, rel=0.001)


def test_without_the_fields_it_tells_what_is_lost(qemu: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Found, "why", "no place holds it")
    qemu.clock.learn(qemu.save)
    for _ in range(20):
        time.sleep(0.005)
        qemu.cut(0.01)
    told = qemu.clock.metrics()
    assert told.slow == "no place holds it; it runs slow"
    assert isinstance(told.lag_ms, float) and told.lag_ms > 80
    assert isinstance(told.lost_ppm, float) and told.lost_ppm > 100_000


def test_a_foreign_pause_is_not_given_back_and_its_epoch_says_so(qemu: Qemu) -> None:
    learned(qemu)
    qemu.cut()
    since = (time.monotonic_ns(), qemu.fields[1])
    qemu.stop()
    time.sleep(0.4)
    qemu.started = time.monotonic_ns()
    assert qemu.cut() is None
    time.sleep(0.01)
    assert qemu.cut() is not None
    assert 390 < qemu.late_ms(since) < 480


def test_a_vm_that_stands_still_is_not_touched(qemu: Qemu) -> None:
    learned(qemu)
    qemu.cut()
    before = list(qemu.fields)
    for pause_s in (0.0, 0.02, 0.05):
        time.sleep(pause_s)
        qemu.clock.begin()
        qemu.clock.repair(time.monotonic_ns())
        assert qemu.clock.done(qemu.saved()) is None
    assert list(qemu.fields) == before and qemu.clock.metrics().slow == ""


@pytest.mark.parametrize("field", [0, 1])
def test_after_one_value_that_cannot_be_nothing_is_written_any_more(qemu: Qemu, field: int) -> None:
    learned(qemu)
    heard: list[str] = []
    qemu.clock.told = heard.append
    qemu.cut()
    qemu.fields[field] += 90 * 10**9
    spoilt: list[int] = []
    qemu.cut(before_repair=lambda: spoilt.extend(qemu.fields))
    assert list(qemu.fields) == spoilt
    assert len(heard) == 1 and "moved by" in heard[0] and qemu.clock.metrics().slow == heard[0]
    for _ in range(5):
        time.sleep(0.01)
        at_stop: list[int] = []
        qemu.cut(before_repair=partial(at_stop.extend, qemu.fields))
        assert list(qemu.fields) == at_stop
    assert len(heard) == 1


def test_memory_that_is_not_what_qemu_saves_is_never_written_again(qemu: Qemu) -> None:
    learned(qemu)
    heard: list[str] = []
    qemu.clock.told = heard.append
    qemu.saves_something_else = True
    qemu.cut()
    assert "where its memory held" in heard[0]


def test_memory_that_cannot_be_reached_ends_nothing(qemu: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    learned(qemu)

    def gone(_fields: Fields) -> list[int]:
        raise OSError("no such process")

    monkeypatch.setattr(Fields, "read", gone)
    qemu.cut()
    assert "no such process" in str(qemu.clock.metrics().slow)


def test_a_stop_by_our_side_is_given_back_and_dates_the_epoch(qemu: Qemu) -> None:
    learned(qemu)
    qemu.cut()
    since = (time.monotonic_ns(), qemu.fields[1])
    with qemu.clock.halting():
        qemu.stop()
        stopped = time.monotonic_ns()
    time.sleep(0.3)
    qemu.started = time.monotonic_ns()
    told = qemu.cut()
    assert told is not None and stopped <= told < stopped + 100 * MS
    assert qemu.late_ms(since) < 50


def test_a_cut_that_fails_is_not_hidden(qemu: Qemu) -> None:
    def fails() -> bytes:
        raise VmError("QEMU has ended")

    with pytest.raises(VmError):
        qemu.clock.learn(fails)
