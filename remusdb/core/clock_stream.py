# SPDX-License-Identifier: Apache-2.0
"""The guest's clocks in a stream of QEMU's device state: read, and set forward for a takeover.

A section is `04 id len name instance version fields [subsections] 7e id` (migration/savevm.c). Sections have no length,
so each is found by its name and version, and believed only if its footer stands where its fields end.

    timer    ticks (the TSC of an emulated guest), 8 unused bytes, clock in ns (HPET, ACPI timer, QEMU's own timers)
    kvmclock clock in ns, under KVM alone; a subsection says whether a start uses this value
    cpu      one a vCPU: its TSC, which only KVM uses; a subsection tells its rate
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import NamedTuple

from remusdb.errors import VmError

FULL_SECTION, FOOTER = b"\x04", b"\x7e"  # QEMU_VM_SECTION_FULL, QEMU_VM_SECTION_FOOTER
TIMER = re.compile(rb"\x04(....)\x05timer\0\0\0\0\0\0\0\x02", re.DOTALL)  # version 2, QEMU >= 1.0
KVMCLOCK = re.compile(rb"\x04(....)\x08kvmclock\0\0\0\0\0\0\0\x01", re.DOTALL)
TIMER_HEAD, KVMCLOCK_HEAD = 19, 22  # bytes that these match
RELIABLE = b"\x05\x1akvmclock/clock_is_reliable\0\0\0\x01"  # then one byte; QEMU >= 2.9
CPU = re.compile(rb"\x04(....)\x03cpu(....)\0\0\0\x0c", re.DOTALL)  # version 12, QEMU >= 0.13
TSC_KHZ = re.compile(rb"\x05\x0bcpu/tsc_khz\0\0\0\x01(.{8})", re.DOTALL)  # machine types from 2.5 on
CPU_TSC = 1157  # env.tsc behind the head of a cpu section: target/i386/machine.c, vmstate_x86_cpu version 12
CPU_MAX_BYTES = 64 << 10  # a section with all its subsections takes 2-8 KiB
TICKS, CLOCK, TIMER_BYTES = 0, 16, 24
I64 = struct.Struct(">q")
MAX_FORWARD_NS = 366 * 86400 * 10**9  # more than a year behind is nothing that a takeover can be


class Clocks(NamedTuple):
    """What the clocks were at the stop. `kvmclock` is None where there is none, and where a start does not use it."""

    ticks: int
    clock: int
    kvmclock: int | None = None

    @property
    def values(self) -> list[int]:
        """Those that there are, in this order."""
        return [self.ticks, self.clock] + ([] if self.kvmclock is None else [self.kvmclock])


@dataclass(frozen=True)
class Places:
    """Where in the stream the clocks stand."""

    timer: int
    kvmclock: int | None

    @property
    def end(self) -> int:
        """Everything that QEMU reads of its clocks for a save is read once this many bytes are out."""
        return self.timer + TIMER_BYTES if self.kvmclock is None else self.kvmclock + I64.size


def places(stream: bytes) -> Places:
    """VmError, saying what is not as expected, for a stream of another QEMU."""
    timer, number = _section(TIMER, stream, "timer")
    _require_footer(stream, timer + TIMER_BYTES, number, "timer")
    if KVMCLOCK.search(stream) is None:
        return Places(timer, None)
    kvmclock, number = _section(KVMCLOCK, stream, "kvmclock")
    end, reliable = kvmclock + I64.size, False
    if stream.startswith(RELIABLE, end):
        end += len(RELIABLE) + 1
        reliable = stream[end - 1 : end] == b"\x01"
    _require_footer(stream, end, number, "kvmclock")
    return Places(timer, kvmclock if reliable else None)


def still(stream: bytes, where: Places) -> bool:
    """Whether the clocks stand there in this stream, too: the sections before them may have grown."""
    timer = TIMER.match(stream, where.timer - TIMER_HEAD)
    kvmclock = where.kvmclock is None or KVMCLOCK.match(stream, where.kvmclock - KVMCLOCK_HEAD)
    return bool(timer and kvmclock)


def read(stream: bytes, where: Places) -> Clocks:
    """The clocks in a stream of the same VM as the one whose places these are."""
    ticks, clock = I64.unpack_from(stream, where.timer + TICKS)[0], I64.unpack_from(stream, where.timer + CLOCK)[0]
    return Clocks(ticks, clock, None if where.kvmclock is None else I64.unpack_from(stream, where.kvmclock)[0])


def under_kvm(stream: bytes) -> bool:
    """Whether KVM runs the guest: then each vCPU has a TSC of its own, which no stop holds up."""
    return KVMCLOCK.search(stream) is not None


def tsc_per_ns(stream: bytes) -> float | None:
    """The rate of the vCPUs' TSC under KVM, None where the stream does not tell it."""
    found = TSC_KHZ.search(stream)
    return I64.unpack(found[1])[0] / 1e6 if found else None


def forward(stream: bytes, ns: int, ticks_per_ns: float) -> bytes:
    """The stream with every clock set forward by `ns`; VmError, and nothing is changed, where it is not understood.

    `ticks_per_ns`: the host's TSC, by which the ticks of an emulated guest go, and a vCPU's where no rate is told.
    """
    if not 0 <= ns <= MAX_FORWARD_NS:
        raise VmError(f"a clock cannot be set forward by {ns} ns")
    where = places(stream)
    changed = bytearray(stream)
    _add(changed, where.timer + TICKS, round(ns * ticks_per_ns))
    _add(changed, where.timer + CLOCK, ns)
    if where.kvmclock is not None:
        _add(changed, where.kvmclock, ns)
    if under_kvm(stream):
        for at in _tscs(stream):
            _add(changed, at, round(ns * (tsc_per_ns(stream) or ticks_per_ns)))
    return bytes(changed)


def rate(first: Clocks, last: Clocks) -> float:
    """Ticks per ns, from two streams of one VM; VmError when it did not run between them."""
    if last.clock - first.clock < 1_000_000 or last.ticks <= first.ticks:
        raise VmError("the VM did not run between two device states: the rate of its TSC is not known")
    return (last.ticks - first.ticks) / (last.clock - first.clock)


def _tscs(stream: bytes) -> list[int]:
    heads = list(CPU.finditer(stream))
    if not heads or len({head[2] for head in heads}) != len(heads):
        raise VmError("the device state holds no vCPU, or one twice")
    for head in heads:
        # Its subsections vary with what the guest uses, so the footer is looked for behind the fields.
        fields_end = head.end() + CPU_TSC + I64.size
        if stream.find(FOOTER + head[1] + FULL_SECTION, fields_end, head.end() + CPU_MAX_BYTES) < 0:
            raise VmError("a vCPU's section in the device state has no end")
    return [head.end() + CPU_TSC for head in heads]


def _section(kind: re.Pattern[bytes], stream: bytes, name: str) -> tuple[int, bytes]:
    """(where its fields begin, its number) of the one section of this kind."""
    found = list(kind.finditer(stream))
    if len(found) != 1:
        raise VmError(f"the device state holds {len(found)} sections `{name}` of the known version, expected one")
    return found[0].end(), found[0][1]


def _require_footer(stream: bytes, at: int, number: bytes, name: str) -> None:
    if stream[at : at + 5] != FOOTER + number:
        raise VmError(f"the section `{name}` of the device state has fields that are not known")


def _add(stream: bytearray, at: int, amount: int) -> None:
    """Signed, as QEMU has them. A TSC wraps after centuries; one that a guest wrote itself may be near it."""
    value = int.from_bytes(stream[at : at + 8])
    stream[at : at + 8] = ((value + amount) % (1 << 64)).to_bytes(8)
