# SPDX-License-Identifier: Apache-2.0
"""What a running process has mapped, and where its own program's symbols and variables lie in it (ELF64, elf.h)."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from remusdb.errors import VmError

GLOBALS_MAX_BYTES = 16 << 20  # .data and .bss of QEMU 10: 1.3 MB
PT_LOAD, SHT_DYNSYM = 1, 11


@dataclass(frozen=True)
class Mapping:
    """One line of /proc/PID/maps."""

    start: int
    end: int
    mode: str
    offset: int
    name: str


def mappings(pid: int) -> list[Mapping]:
    """The memory map of a process. OSError when it is gone."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        place, mode, offset, _device, _inode, *name = line.split(None, 5)
        start, end = (int(word, 16) for word in place.split("-"))
        found.append(Mapping(start, end, mode, int(offset, 16), name[0] if name else ""))
    return found


def symbol_address(pid: int, maps: list[Mapping], name: str) -> int | None:
    """Where a dynamic symbol of the process's own program lies, None if the program does not tell it."""
    exe = os.readlink(f"/proc/{pid}/exe")
    with open(f"/proc/{pid}/exe", "rb") as file:
        value, first = _dynsym(file.fileno(), name), _first_load(file.fileno())
    base = next((part.start - part.offset for part in maps if part.name == exe), None)
    return None if value is None or base is None else base - first + value


def _dynsym(fd: int, name: str) -> int | None:
    """The value of a symbol of an ELF64 file (elf.h)."""
    head = os.pread(fd, 64, 0)
    if head[:5] != b"\x7fELF\x02":
        return None
    at, size, count = struct.unpack_from("<Q", head, 40)[0], *struct.unpack_from("<HH", head, 58)
    sections = [struct.unpack("<IIQQQQIIQQ", os.pread(fd, 64, at + size * i)) for i in range(count)]
    for _name, kind, _flags, _addr, offset, length, link, _info, _align, _entry in sections:
        if kind != SHT_DYNSYM or link >= count:
            continue
        strings = os.pread(fd, sections[link][5], sections[link][4])
        wanted = strings.find(b"\0" + name.encode() + b"\0") + 1
        for index, _i, _o, _s, value, _n in struct.iter_unpack("<IBBHQQ", os.pread(fd, length, offset)):
            if wanted and index == wanted and value:
                return int(value)
    return None


def _first_load(fd: int) -> int:
    """The address at which the file's beginning is meant to be: 0 for a position-independent program."""
    head = os.pread(fd, 64, 0)
    at, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
    loads = [struct.unpack("<IIQQQQQQ", os.pread(fd, 56, at + size * i)) for i in range(count)]
    return min((load[3] - load[2] for load in loads if load[0] == PT_LOAD), default=0)


def variables(pid: int, maps: list[Mapping]) -> list[tuple[int, int]]:
    """QEMU's writable data, and the nameless mapping right behind it, which is .bss."""
    exe = os.readlink(f"/proc/{pid}/exe")
    parts: list[tuple[int, int]] = []
    end = 0
    for part in maps:
        if "w" in part.mode and (part.name == exe or (not part.name and part.start == end)):
            parts.append((part.start, part.end - part.start))
            end = part.end
    if not parts or sum(size for _, size in parts) > GLOBALS_MAX_BYTES:
        raise VmError("QEMU's global variables are not where a program has them")
    return parts
