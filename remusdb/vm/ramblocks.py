# SPDX-License-Identifier: Apache-2.0
"""QEMU's RAM blocks, from the monitor's `info ramblock`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from remusdb.errors import VmError
from remusdb.printable import printable

PAGE_BYTES = 4096
NAME_MAX_BYTES = 255  # RAMBlock.idstr in QEMU has 256
ADDRESS_END = 1 << 56  # of a process of Linux on x86-64, with five levels of page tables
LINE_MAX_CHARACTERS = 512
TEXT_MAX_CHARACTERS = 1 << 20  # a row has about 130, and a VM some dozens of blocks
# "  name   4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007f3c4be00000  rw": a size with
# its unit, then offset, used, total and (QEMU >= 8) the host virtual address. Names may hold blanks.
ROW = re.compile(r"^\s*(\S.*?)\s+\d+ [KMG]iB\s+0x[0-9a-f]+\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\b")


@dataclass(frozen=True)
class Block:
    """One RAM block: `size` bytes in use (whole pages), mapped at `address` in QEMU."""

    name: str
    size: int
    address: int

    @property
    def pages(self) -> int:
        """Its size in pages of 4096 bytes."""
        return self.size // PAGE_BYTES


def parse_ramblocks(text: str) -> list[Block]:
    """The blocks in the text of `info ramblock`, in QEMU's order; VmError when there are none to read."""
    if not isinstance(text, str) or len(text) > TEXT_MAX_CHARACTERS:
        raise VmError("`info ramblock` shows no RAM blocks, but something else")
    rows = [ROW.match(line) for line in text.splitlines() if len(line) <= LINE_MAX_CHARACTERS]
    blocks = [_block(row) for row in rows if row]
    if not blocks:
        raise VmError("`info ramblock` shows no host addresses", hint="QEMU 8.0 or newer is needed")
    if len({block.name for block in blocks}) != len(blocks):
        raise VmError("`info ramblock` shows a RAM block twice")
    return blocks


def _block(row: re.Match[str]) -> Block:
    used, address = int(row[2], 16), int(row[4], 16)
    size = -(-used // PAGE_BYTES) * PAGE_BYTES
    if len(row[1].encode(errors="replace")) > NAME_MAX_BYTES or address % PAGE_BYTES or address + size > ADDRESS_END:
        raise VmError(f"`info ramblock` shows a RAM block that cannot be: {printable(row[0], 200)}")
    return Block(row[1], size, address)
