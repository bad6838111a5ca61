# SPDX-License-Identifier: Apache-2.0
"""Builds guest.S, the bare-metal guest, into a file that QEMU boots with -kernel."""

from __future__ import annotations

import os
import subprocess
import tempfile
from enum import Enum
from pathlib import Path

from tools.lab.paths import CACHE

_SOURCE = Path(__file__).parent / "guest.S"


class Mode(Enum):
    """Pages of 4 KiB that a round of the guest writes, and reads."""

    DIRTIER = (4096, 0)  # 16 MiB written as fast as it goes
    READER = (16, 8192)  # 32 MiB read, 64 KiB written


def build(mode: Mode) -> Path:
    """The guest of this mode, built anew (some 50 ms). Raises subprocess.CalledProcessError when gcc fails."""
    writes, reads = mode.value
    CACHE.mkdir(parents=True, exist_ok=True)
    target = CACHE / f"guest-{mode.name.lower()}.bin"
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        elf, flat = Path(work, "guest.elf"), Path(work, "guest.bin")
        # The multiboot header goes to the load address itself, the code right behind it.
        layout = "-Wl,--build-id=none,-Ttext=0x100020,--section-start=.multiboot=0x100000,-e,start"
        sizes = [f"-DWRITES={writes}", f"-DREADS={reads}"]
        _run(["gcc", "-m32", "-nostdlib", "-static", "-no-pie", layout, *sizes, "-o", str(elf), str(_SOURCE)])
        _run(["objcopy", "-O", "binary", str(elf), str(flat)])
        os.replace(flat, target)  # another lab may be starting from it
    return target


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, timeout=60)
