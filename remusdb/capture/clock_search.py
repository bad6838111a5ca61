# SPDX-License-Identifier: Apache-2.0
"""Where a running QEMU keeps its guest's clocks, found by the values that its own device state tells.

`KVMClockState.clock` is on QEMU's heap and keeps the value of the last stop until the next one, so it is searched for
while the VM runs. `timers_state` is a global variable that holds those values only while the VM is stopped: its
memory is read then, by the symbol if QEMU's binary has it in .dynsym (Debian's has), else all of .data and .bss.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Sequence

from remusdb.capture.clock_fields import Fields
from remusdb.capture.program import Mapping, mappings, symbol_address, variables
from remusdb.core.clock_stream import Clocks
from remusdb.errors import VmError
from remusdb.vm.ramblocks import Block

SYMBOL = "timers_state"
SYMBOL_BYTES = 128  # struct TimersState takes 72-104 (system/cpu-timers-internal.h)
HEAP_MAX_BYTES = 64 << 20  # a larger mapping is guest memory, or a malloc arena that holds no device
SEARCH_MAX_BYTES = 512 << 20
HITS_MAX = 16
I64 = struct.Struct("<q")


class Search:
    """One search. `copy` and `read_again` are for two stops of the VM, `look` and `found` for when it runs again."""

    def __init__(self, pid: int, blocks: Sequence[Block]) -> None:
        """`blocks`: guest memory, which is left out."""
        self._pid, self._blocks = pid, blocks
        self._windows: list[tuple[int, int]] = []
        self._why = ""  # why nothing is found
        self._copies: list[tuple[int, bytes]] = []
        self._timers: tuple[int, int] | None = None
        self._candidates: Fields | None = None
        self._heap: list[int] = []
        self._again: list[int] = []
        self._trying(self._find_windows)

    def _trying(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (VmError, OSError) as exc:
            self._why = self._why or str(exc)

    def _find_windows(self) -> None:
        maps = mappings(self._pid)
        symbol = symbol_address(self._pid, maps, SYMBOL)
        self._windows = variables(self._pid, maps) if symbol is None else [(symbol, SYMBOL_BYTES)]

    def copy(self) -> None:
        """Keep QEMU's variables as they are at the first stop. Takes 10 us with the symbol, else about 1 ms."""
        self._trying(self._copy)

    def _copy(self) -> None:
        with open(f"/proc/{self._pid}/mem", "rb", buffering=0) as memory:
            self._copies = [(at, os.pread(memory.fileno(), size, at)) for at, size in self._windows]

    def look(self, clocks: Clocks) -> None:
        """Find what holds the clocks of the first stop."""
        self._trying(lambda: self._look(clocks))

    def _look(self, clocks: Clocks) -> None:
        self._timers = find_timers(self._copies, clocks)
        self._copies = []
        if clocks.kvmclock is not None:
            self._heap = find_on_heap(self._pid, self._blocks, clocks.kvmclock)
        self._candidates = Fields(self._pid, [*self._timers, *self._heap])

    def read_again(self) -> None:
        """Read what was found at a second stop."""
        self._trying(self._read_again)

    def _read_again(self) -> None:
        if self._candidates is not None:
            self._again = self._candidates.read()

    def found(self, clocks: Clocks) -> Fields:
        """The fields that held the clocks at both stops, in the order of `Clocks.values`. VmError: why not."""
        if self._why:
            raise VmError(self._why)
        if self._timers is None or self._again[:2] != [clocks.ticks, clocks.clock]:
            raise VmError("QEMU's variables did not hold its clock at a second look")
        heap = [at for at, value in zip(self._heap, self._again[2:], strict=True) if value == clocks.kvmclock]
        if clocks.kvmclock is not None and len(heap) != 1:
            raise VmError(f"{len(heap)} places on QEMU's heap hold kvmclock, expected one")
        return Fields(self._pid, [*self._timers, *heap])


class Timers:
    """QEMU's own clock in a VM that stands still with known clocks: a standby that has loaded its device state."""

    def __init__(self, pid: int) -> None:
        """Look for the symbol, which takes some ms. Where QEMU does not tell it, nothing will be moved."""
        self._pid = pid
        self._at: int | None = None
        with contextlib.suppress(OSError):
            self._at = symbol_address(pid, mappings(pid), SYMBOL)

    def forward(self, clocks: Clocks, ns: int, ticks_per_ns: float) -> None:
        """Move it, if it is what `clocks` says. VmError or OSError when it is not, and nothing was moved then."""
        if self._at is None:
            raise VmError("where QEMU keeps its clock cannot be found out")
        with open(f"/proc/{self._pid}/mem", "rb", buffering=0) as memory:
            copy = os.pread(memory.fileno(), SYMBOL_BYTES, self._at)
        fields = Fields(self._pid, find_timers([(self._at, copy)], clocks))
        fields.write([clocks.ticks + round(ns * ticks_per_ns), clocks.clock + ns])


def find_timers(copies: Sequence[tuple[int, bytes]], clocks: Clocks) -> tuple[int, int]:
    """(address of the ticks, address of the clock) in (address, content) of QEMU's variables. VmError: not just one.

    Both are in one struct, the ticks before the clock. Before them stands the newest value that was read of the ticks,
    which may be the same; writing that one would lose time all the same.
    """
    clock = [at + i for at, content in copies for i in _aligned(content, clocks.clock)]
    if len(clock) != 1:
        raise VmError(f"{len(clock)} places in QEMU's variables hold its clock, expected one")
    ticks = [at + i for at, content in copies for i in _aligned(content, clocks.ticks)]
    near = [at for at in ticks if clock[0] - SYMBOL_BYTES <= at < clock[0]]
    if not near:
        raise VmError("QEMU's ticks do not stand where its clock stands")
    return max(near), clock[0]


def find_on_heap(pid: int, blocks: Sequence[Block], value: int) -> list[int]:
    """Where QEMU's heap holds this value, which it keeps from one stop to the next: read while the VM runs."""
    hits: list[int] = []
    searched = 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for part in mappings(pid):
            size = part.end - part.start
            searched += size if _heap(part, blocks) else 0
            if not _heap(part, blocks) or searched > SEARCH_MAX_BYTES or len(hits) >= HITS_MAX:
                continue
            with contextlib.suppress(OSError):  # unmapped meanwhile, or a guard page
                content = os.pread(memory.fileno(), size, part.start)
                hits += [part.start + i for i in _aligned(content, value)]
    return hits[:HITS_MAX]


def _heap(part: Mapping, blocks: Sequence[Block]) -> bool:
    """Whether a device's state may lie there: writable, nobody's file, not guest memory."""
    if part.mode[:2] != "rw" or part.name not in ("", "[heap]") or part.end - part.start > HEAP_MAX_BYTES:
        return False
    return not any(part.start < block.address + block.size and block.address < part.end for block in blocks)


def clock_named(pid: int) -> bool:
    """Whether QEMU's program says where it keeps the guest's clock. True where it cannot be read: nothing is known."""
    try:
        return symbol_address(pid, mappings(pid), SYMBOL) is not None
    except OSError:
        return True


def _aligned(content: bytes, value: int) -> list[int]:
    """Where this i64 stands, at multiples of 8."""
    pattern, found, at = I64.pack(value), [], -1
    while (at := content.find(pattern, at + 1)) >= 0:
        if at % 8 == 0:
            found.append(at)
    return found
