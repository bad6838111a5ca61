# SPDX-License-Identifier: Apache-2.0
"""Reads the clocks of the guest clocks.S from outside, beside the host's own."""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass

SHOWN = 0x200000  # as in clocks.S
LAYOUT = struct.Struct("<QQQQII")
READINGS = 300
PAUSE_S = 0.0003


@dataclass(frozen=True)
class Shown:
    """One reading, in ns. `kvmclock` is 0 where there is none; `hpet` is QEMU's clock."""

    host: int  # CLOCK_MONOTONIC_RAW
    kvmclock: int
    hpet: int
    tsc: int  # in ticks
    back: int  # so often a clock was seen to go back

    @property
    def main(self) -> int:
        """What a guest keeps time by."""
        return self.kvmclock or self.hpet


class Clocks:
    """The clocks of one VM."""

    def __init__(self, pid: int, ram: int) -> None:
        """`ram`: where QEMU has the guest's memory."""
        self._pid, self._ram = pid, ram

    def read(self) -> Shown:
        """The reading with the least delay of many: a guest that stands still in a cut shows an old one."""
        found = self._readings()
        return max(found, key=lambda one: one.main - one.host)

    def _readings(self) -> list[Shown]:
        found = []
        with open(f"/proc/{self._pid}/mem", "rb", buffering=0) as memory:
            for _ in range(READINGS):
                host = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
                raw = os.pread(memory.fileno(), LAYOUT.size, self._ram + SHOWN)
                _rounds, tsc, kvmclock, hpet, back, _has = LAYOUT.unpack(raw)
                found.append(Shown(host, kvmclock, 10 * hpet, tsc, back))
                time.sleep(PAUSE_S)
        return found


def lost_ms(before: Shown, after: Shown) -> dict[str, float]:
    """How much each clock fell behind the host's between two readings, in ms."""
    passed = after.host - before.host
    lost = {"hpet": passed - (after.hpet - before.hpet)}
    if after.kvmclock:
        lost["kvmclock"] = passed - (after.kvmclock - before.kvmclock)
    return {name: ns / 1e6 for name, ns in lost.items()}
