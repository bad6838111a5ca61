# SPDX-License-Identifier: Apache-2.0
"""Builds the bare-metal guests, guest.S, clocks.S and disk_reader.c, into files that QEMU boots with -kernel."""

from __future__ import annotations

import os
import subprocess
import tempfile
from enum import Enum
from pathlib import Path

from tools.lab.paths import CACHE

_SOURCES = Path(__file__).parent
# The multiboot header goes to the load address itself, the code right behind it.
_LAYOUT = "-Wl,--build-id=none,-Ttext=0x100020,--section-start=.multiboot=0x100000,-e,start"
_GCC = ("gcc", "-m32", "-nostdlib", "-static", "-no-pie", _LAYOUT)
_C = (
    "-O2",
    "-Wall",
    "-Werror",
    "-ffreestanding",
    "-fno-pic",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
)


class Mode(Enum):
    """What the guest does: its source, and pages of 4 KiB that a round writes, and reads."""

    DIRTIER = ("guest.S", 4096, 0)  # 16 MiB written as fast as it goes
    READER = ("guest.S", 16, 8192)  # 32 MiB read, 64 KiB written
    CLOCKS = ("clocks.S", 1, 0)  # tells its clocks: see clocks.py


ORDER_AT = 0x300000  # in the guest's memory: guest.S looks there after each round
POWER_OFF, RESET, WRITE = 1, 2, 3


def build(mode: Mode) -> Path:
    """The guest of this mode, built again (some 50 ms). Raises subprocess.CalledProcessError when gcc fails."""
    source, writes, reads = mode.value
    return _build(f"guest-{mode.name.lower()}", [f"-DWRITES={writes}", f"-DREADS={reads}", str(_SOURCES / source)])


def build_rounds(writes: int, reads: int) -> Path:
    """The guest whose round writes so many pages, and reads so many. Raises as `build` does."""
    sizes = [f"-DWRITES={writes}", f"-DREADS={reads}"]
    return _build(f"guest-{writes}-{reads}", [*sizes, str(_SOURCES / "guest.S")])


def build_disk_reader(disk_pages: int) -> Path:
    """The guest that reads its SATA disk, of so many pages of 4 KiB, at random. Raises as `build` does."""
    return _build("disk-reader", [*_C, f"-DDISK_PAGES={disk_pages}", str(_SOURCES / "disk_reader.c")])


def _build(name: str, arguments: list[str]) -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    target = CACHE / f"{name}.bin"
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        elf, flat = Path(work, "guest.elf"), Path(work, "guest.bin")
        _run([*_GCC, "-o", str(elf), *arguments])
        _run(["objcopy", "-O", "binary", str(elf), str(flat)])
        os.replace(flat, target)  # another lab may be starting from it
    return target


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, timeout=60)
