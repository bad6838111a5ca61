# SPDX-License-Identifier: Apache-2.0
"""What `check` says of a guest's clock, and where QEMU keeps it."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import xml.etree.ElementTree as ET

import pytest

from remusdb.capture import clock_search, program
from remusdb.capture.clock_fields import Fields
from remusdb.core.clock_stream import Clocks
from remusdb.errors import VmError
from remusdb.preflight import clock as preflight_clock
from remusdb.preflight.gather import HostInventory, Inventory, VmInventory


def told(xml: str, *, named: bool = True) -> tuple[bool, str, str]:
    [check] = preflight_clock.decide(
        Inventory(VmInventory("db1", xml, True, clock_named=named), HostInventory()), ET.fromstring(xml)
    )
    assert check.level == "advice"
    return check.ok, check.detail, check.hint


@pytest.mark.parametrize(
    ("xml", "ok", "hint"),
    [
        ("<domain type='kvm'/>", True, ""),
        ("<domain type='kvm'><clock><timer name='hypervclock' present='no'/></clock></domain>", True, ""),
        ("<domain type='kvm'><clock><timer name='hypervclock' present='yes'/></clock></domain>", False, "w32tm"),
        ("<domain type='kvm'><features><hyperv mode='passthrough'/></features></domain>", False, "w32tm"),
    ],
)
def test_windows_is_named(xml: str, ok: bool, hint: str) -> None:
    assert told(xml)[0] is ok and hint in told(xml)[2]


@pytest.mark.parametrize(("kind", "source"), [("kvm", "ptp_kvm"), ("qemu", "RTC")])
def test_a_qemu_without_the_symbol_is_named(kind: str, source: str) -> None:
    ok, detail, hint = told(f"<domain type='{kind}'/>", named=False)
    assert not ok and "searched for" in detail and source in hint


def test_a_dynamic_symbol_is_found_where_the_loader_put_it() -> None:
    """PyVersion of this very Python, or of its library, which holds its version's text."""
    pid = os.getpid()
    maps = program.mappings(pid)
    found = program.symbol_address(pid, maps, "_Py_NoneStruct")
    if found is None:  # a Python whose program is a stub around its library
        assert (
            "_Py_NoneStruct"
            not in subprocess.run(["nm", "-D", f"/proc/{pid}/exe"], capture_output=True, text=True, check=True).stdout
        )
    else:
        assert found == id(None)
    assert program.symbol_address(pid, maps, "timers_state") is None


def variables(*words: int) -> list[tuple[int, bytes]]:
    return [(0x5000, struct.pack(f"<{len(words)}q", *words))]


def test_the_ticks_are_those_just_before_the_clock() -> None:
    """What was last read of the ticks stands before them, and is the same under TCG."""
    state = variables(0, 77, 77, 1, 2, 3, 4, 5, 999, 0)
    assert clock_search.find_timers(state, Clocks(77, 999)) == (0x5010, 0x5040)


@pytest.mark.parametrize(
    "words", [(0, 77, 77, 5, 0), (77, 999, 999), (999, 77, 0, 0), (77, *([0] * 20), 999), (0, 0, 0)]
)
def test_a_clock_that_is_not_there_just_once_is_not_taken(words: tuple[int, ...]) -> None:
    with pytest.raises(VmError):
        clock_search.find_timers(variables(*words), Clocks(77, 999))


def test_fields_of_a_process_are_read_and_written() -> None:
    memory = struct.Struct("<4q")
    buffer = bytearray(memory.pack(1, 2, 3, -4))
    at = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    fields = Fields(os.getpid(), [at + 24, at])
    assert fields.read() == [-4, 1]
    fields.write([-40, 10])
    assert memory.unpack(buffer) == (10, 2, 3, -40)
    with pytest.raises(OSError, match="8 of 16 bytes"):
        Fields(os.getpid(), [at, 8]).read()


def test_the_clock_of_a_loaded_standby_is_moved_if_it_is_what_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loading took is given back before the start."""
    state = (ctypes.c_int64 * 16)(0, 77, 1, 2, 3, 4, 5, 999)
    monkeypatch.setattr(clock_search, "symbol_address", lambda *_: ctypes.addressof(state))
    timers = clock_search.Timers(os.getpid())
    with pytest.raises(VmError):
        timers.forward(Clocks(77, 998), 1000, 2.5)
    assert list(state[:8]) == [0, 77, 1, 2, 3, 4, 5, 999]
    timers.forward(Clocks(77, 999, 5), 1000, 2.5)
    assert list(state[:8]) == [0, 2577, 1, 2, 3, 4, 5, 1999]
