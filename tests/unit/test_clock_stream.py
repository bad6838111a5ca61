# SPDX-License-Identifier: Apache-2.0
"""The guest's clocks in device states of QEMU 10.0.2: pairs of one bare-metal VM each, saved one second apart."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from remusdb.core import clock_stream
from remusdb.core.clock_stream import CPU, CPU_TSC, Clocks
from remusdb.errors import VmError
from remusdb_agents.backup import catch_up
from remusdb_agents.backup.catch_up import CatchUp

DATA = Path(__file__).parent / "data"
SECOND = 1_000_000_000
KHZ = 2_445_428  # what KVM told QEMU of the TSC on that machine
KINDS = ("kvm", "kvm-24-vcpus", "tcg")


def state(kind: str, number: int) -> bytes:
    return zstandard.ZstdDecompressor().decompress((DATA / f"{kind}.{number}.zst").read_bytes())


def clocks(stream: bytes) -> Clocks:
    return clock_stream.read(stream, clock_stream.places(stream))


def tscs(stream: bytes) -> list[int]:
    return [struct.unpack_from(">Q", stream, head.end() + CPU_TSC)[0] for head in CPU.finditer(stream)]


def changed(one: bytes, two: bytes) -> int:
    return sum(a != b for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_each_clock_moved_by_about_a_second(kind: str) -> None:
    one, two = clocks(state(kind, 1)), clocks(state(kind, 2))
    assert 0.95 * SECOND < two.clock - one.clock < 1.05 * SECOND
    assert clock_stream.rate(one, two) == pytest.approx(KHZ / 1e6, rel=0.001)
    assert (one.kvmclock is None) is (kind == "tcg")
    if one.kvmclock is not None and two.kvmclock is not None:
        assert 0.95 * SECOND < two.kvmclock - one.kvmclock < 1.05 * SECOND


def test_the_tsc_of_each_vcpu_moved_by_about_a_second() -> None:
    one, two = tscs(state("kvm-24-vcpus", 1)), tscs(state("kvm-24-vcpus", 2))
    assert len(one) == len(two) == 24
    assert all(b - a == pytest.approx(1000 * KHZ, rel=0.05) for a, b in zip(one, two, strict=True))


def test_with_many_vcpus_kvmclock_is_saved_after_the_first_buffer() -> None:
    assert clock_stream.places(state("kvm", 1)).end < 4096
    assert clock_stream.places(state("kvm-24-vcpus", 1)).end > 32 << 10


@pytest.mark.parametrize("kind", KINDS)
def test_forward_moves_the_clocks_and_nothing_else(kind: str) -> None:
    before = state(kind, 1)
    after = clock_stream.forward(before, 90 * SECOND, 2.5)
    one, two = clocks(before), clocks(after)
    assert (two.clock - one.clock, two.ticks - one.ticks) == (90 * SECOND, 225 * SECOND)
    fields = 2
    if one.kvmclock is not None and two.kvmclock is not None:
        assert two.kvmclock - one.kvmclock == 90 * SECOND
        assert {b - a for a, b in zip(tscs(before), tscs(after), strict=True)} == {90_000 * KHZ}
        fields += 1 + len(tscs(before))
    assert 0 < changed(before, after) <= 8 * fields
    assert clock_stream.forward(before, 0, 2.5) == before


@pytest.mark.parametrize("ns", [-1, 400 * 86400 * SECOND])
def test_no_clock_goes_back_or_a_year_ahead(ns: int) -> None:
    with pytest.raises(VmError):
        clock_stream.forward(state("kvm", 1), ns, 2.5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: b"",
        lambda s: s[:40],
        lambda s: s.replace(b"\x05timer\0\0\0\0\0\0\0\x02", b"\x05timer\0\0\0\0\0\0\0\x03"),
        lambda s: s.replace(b"\x05timer", b"\x05times"),
        lambda s: s[:51] + bytes(4) + s[51:],  # a field more in `timer`
        lambda s: s.replace(b"kvmclock/clock_is_reliable", b"kvmclock/clock_is_something"[:26]),
        lambda s: s.replace(b"\x03cpu\0", b"\x03cpx\0"),
        lambda s: s + s[8:200],  # `timer` twice
    ],
)
def test_a_stream_of_another_qemu_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(VmError):
        clock_stream.forward(spoil(state("kvm", 1)), SECOND, 2.5)


def test_a_kvmclock_that_a_start_does_not_use_is_no_clock() -> None:
    """Before Linux 4.9 QEMU works it out from the guest's memory."""
    told = b"kvmclock/clock_is_reliable\0\0\0\x01"
    old = state("kvm", 1).replace(told + b"\x01", told + b"\0")
    assert clocks(old).kvmclock is None and clock_stream.under_kvm(old)


def test_places_are_found_anew_when_a_section_before_them_grew() -> None:
    one = state("kvm", 1)
    where = clock_stream.places(one)
    tail = one.index(b"\x05\x0bcpu/tsc_khz")
    grown = one[:tail] + b"\x05\x09cpu/other\0\0\0\x01\0" + one[tail:]
    assert clock_stream.still(one, where) and not clock_stream.still(grown, where)
    assert clocks(grown) == clocks(one)


@pytest.mark.parametrize("kind", KINDS)
def test_a_takeover_gives_the_time_since_the_cut_back(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = state(kind, 1), state(kind, 2)
    monkeypatch.setattr(catch_up, "now_ns", lambda: 500 * SECOND)
    loaded = clocks(CatchUp(one, 498 * SECOND).apply(two).devices)
    assert loaded.clock - clocks(two).clock == 2 * SECOND
    assert loaded.ticks - clocks(two).ticks == pytest.approx(2_000 * KHZ, rel=0.001)


@pytest.mark.parametrize(("found_ms", "wanted_ms"), [(0, 30), (29, 30), (31, 31), (-30_000, -30_000)])
def test_what_loading_took_is_given_to_kvmclock_forward_only(
    found_ms: int, wanted_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 ms passed since the state was made; a clock that is nowhere near is not ours to set."""
    monkeypatch.setattr(catch_up, "now_ns", lambda: 500 * SECOND)
    loaded = CatchUp(state("kvm", 1), 498 * SECOND).apply(state("kvm", 2))
    assert loaded.clocks is not None and loaded.clocks.kvmclock is not None
    monkeypatch.setattr(catch_up, "now_ns", lambda: 500 * SECOND + 30_000_000)
    at = loaded.clocks.kvmclock
    asked: list[int] = []

    class FakeKvm:
        def __init__(self, pid: int) -> None:
            assert pid == 77

        def move(self, wanted: Callable[[int], int]) -> None:
            asked.append(wanted(at + found_ms * 1_000_000) - at)

    monkeypatch.setattr(catch_up, "KvmClock", FakeKvm)
    loaded.finish(77)
    assert asked == [wanted_ms * 1_000_000]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (CatchUp(b"", None), "did not run until"),  # an operator's pause is nobody's to give back
        (CatchUp(b"", 498 * SECOND), "stays 2.000 s late"),  # the first epoch: no rate is known
        (CatchUp(state("tcg", 2), 498 * SECOND), "stays 2.000 s late"),
    ],
)
def test_else_the_state_is_loaded_unchanged_and_the_reason_told(
    found: CatchUp, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(catch_up, "now_ns", lambda: 500 * SECOND)
    with caplog.at_level(logging.INFO):
        assert found.apply(state("tcg", 2)).devices == state("tcg", 2)
    assert why in caplog.text


def test_a_vcpu_whose_section_ends_inside_its_tsc_is_not_understood() -> None:
    """The stream would have grown by what is missing of the field."""
    timer = b"\x04\0\0\0\1\x05timer\0\0\0\0\0\0\0\x02" + bytes(24) + b"\x7e\0\0\0\1"
    clock = b"\x04\0\0\0\3\x08kvmclock\0\0\0\0\0\0\0\1" + bytes(8) + b"\x7e\0\0\0\3"
    for short in range(1157, 1165):
        cpu = b"\x04\0\0\0\2\x03cpu\0\0\0\0\0\0\0\x0c" + bytes(short) + b"\x7e\0\0\0\2\x04"
        with pytest.raises(VmError, match="vCPU"):
            clock_stream.forward(timer + clock + cpu, 10**9, 2.5)
