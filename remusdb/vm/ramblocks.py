# SPDX-License-Identifier: Apache-2.0
"""QEMU's RAM blocks, from the monitor's `info ramblock`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from remusdb.errors import VmError

PAGE_BYTES = 4096
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
    blocks = []
    for row in map(ROW.match, text.splitlines()):
        if row:
            used = int(row[2], 16)
            blocks.append(Block(row[1], -(-used // PAGE_BYTES) * PAGE_BYTES, int(row[4], 16)))
    if not blocks:
        raise VmError("`info ramblock` shows no host addresses", hint="QEMU 8.0 or newer is needed")
    return blocks
