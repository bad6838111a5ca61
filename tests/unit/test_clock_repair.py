# SPDX-License-Identifier: Apache-2.0
"""What a cut takes from the guest's clocks is given back, and nothing else: a guest that is stopped again and again."""

from __future__ import annotations

import random

import pytest

from remusdb.core.clock_repair import Book, ClockWrong, Instant
from remusdb.core.clock_stream import Clocks

MS = 1_000_000
RATE = 2.59615  # ticks per ns
BOOT = 12_000 * MS  # the host's clock when the guest's began


class Guest:
    """A guest whose clocks stand still while it does. Times in ns; what is written counts from the next start on."""

    def __init__(self, kvm: bool = True, ppm: float = 0.0) -> None:
        self.now, self.clock, self.ticks, self.kvm, self.rate = BOOT, 0.0, 0.0, kvm, 1 + ppm / 1e6

    def run(self, ms: float) -> None:
        self.now += round(ms * MS)
        self.clock += ms * MS * self.rate
        self.ticks += ms * MS * RATE

    def stand(self, ms: float) -> None:
        self.now += round(ms * MS)

    @property
    def clocks(self) -> Clocks:
        return Clocks(round(self.ticks), round(self.clock), round(self.clock) + 7 if self.kvm else None)

    @property
    def at(self) -> Instant:
        return Instant(self.now, self.now + 5_000)

    def set(self, clocks: Clocks) -> None:
        self.clock, self.ticks = float(clocks.clock), float(clocks.ticks)

    @property
    def late_ms(self) -> float:
        return (self.now - BOOT - self.clock) / MS


def protect(guest: Guest) -> Book:
    guest.run(1000)
    return Book(guest.clocks, guest.at, RATE)


def cut(guest: Guest, book: Book, ours_ms: float, *, write: bool = True) -> Clocks:
    found = guest.clocks
    wanted = book.look(found, guest.at, round(ours_ms * MS))
    assert wanted.clock >= found.clock and wanted.ticks >= found.ticks
    if write and wanted != found:
        guest.set(wanted)
        book.wrote(wanted)
    book.settle()
    return wanted


@pytest.mark.parametrize("kvm", [True, False])
def test_ten_minutes_of_cuts_lose_less_than_a_millisecond(kvm: bool) -> None:
    guest, chance = Guest(kvm), random.Random(1)
    book = protect(guest)
    for _ in range(12_000):
        guest.stand(0.4)
        guest.run(45)
        guest.stand(5 * chance.random())
        cut(guest, book, 8)
        assert book.ran
    assert 0 <= guest.late_ms < 1
    assert guest.ticks / guest.clock == pytest.approx(RATE, rel=1e-6)


def test_a_cut_that_mended_nothing_is_made_good_by_the_next() -> None:
    guest = Guest()
    book = protect(guest)
    for turn in range(100):
        guest.run(45)
        guest.stand(5)
        cut(guest, book, 10, write=turn % 3 == 0)
    assert guest.late_ms < 6


def test_without_writing_it_tells_what_is_lost() -> None:
    guest = Guest()
    book = protect(guest)
    for _ in range(100):
        guest.run(45)
        guest.stand(5)
        cut(guest, book, 5.5, write=False)
    assert book.late_ns == pytest.approx(500 * MS, rel=0.01)


@pytest.mark.parametrize("pause_ms", [60, 1500, 3_600_000])
def test_somebody_elses_pause_is_not_given_back(pause_ms: float) -> None:
    guest = Guest()
    book = protect(guest)
    for turn in range(60):
        guest.run(45)
        if turn == 20:
            guest.stand(pause_ms)  # and runs again before the cut
        guest.stand(5)
        cut(guest, book, 6)
        assert book.ran is (turn != 20)
    assert guest.late_ms == pytest.approx(pause_ms + 5, abs=1)


def test_nothing_is_written_to_a_vm_that_stands_still() -> None:
    guest = Guest()
    book = protect(guest)
    for _ in range(20):
        guest.run(45)
        guest.stand(5)
        cut(guest, book, 6)
    stopped = guest.clocks
    for _ in range(40):
        guest.stand(50)
        cut(guest, book, 6)
        assert not book.ran
    assert guest.clocks == stopped
    guest.run(45)
    guest.stand(5)
    cut(guest, book, 6)
    assert guest.late_ms == pytest.approx(2000, abs=6)


def test_a_stop_of_our_own_is_given_back_however_long() -> None:
    guest = Guest()
    book = protect(guest)
    guest.run(45)
    guest.stand(900)
    cut(guest, book, 901)
    assert guest.late_ms < 1


def test_a_guest_clock_that_goes_faster_is_not_set_back() -> None:
    guest = Guest(ppm=2)
    book = protect(guest)
    guest.run(3_600_000)  # the disks are copied meanwhile
    for _ in range(100):
        guest.run(45)
        guest.stand(5)
        cut(guest, book, 6)
    assert guest.late_ms < 0


@pytest.mark.parametrize(
    "change",
    [
        lambda c: Clocks(c.ticks, c.clock, c.kvmclock - 100 * MS),
        lambda c: Clocks(c.ticks, c.clock, c.kvmclock + 1100 * MS),
        lambda c: Clocks(c.ticks, c.clock - 100 * MS, c.kvmclock),
        lambda c: Clocks(c.ticks, c.clock + 1100 * MS, c.kvmclock),
        lambda c: Clocks(c.ticks - 10**9, c.clock, c.kvmclock),
        lambda c: Clocks(c.ticks + 10**10, c.clock, c.kvmclock),
        lambda c: Clocks(c.ticks, c.clock, None),
        lambda c: Clocks(0x7F00DEADBEEF0000, 0x7F00DEADBEEF0000, 0x7F00DEADBEEF0000),
    ],
)
def test_a_value_that_cannot_be_is_an_error(change: object) -> None:
    guest = Guest()
    book = protect(guest)
    guest.run(45)
    guest.stand(5)
    cut(guest, book, 6)
    guest.run(45)
    assert callable(change)
    with pytest.raises(ClockWrong):
        book.look(change(guest.clocks), guest.at, 6 * MS)
