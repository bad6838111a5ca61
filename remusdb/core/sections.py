# SPDX-License-Identifier: Apache-2.0
"""Which devices a saved device state speaks of: the sections of QEMU's stream, by name and instance.

QEMU writes one section a device (migration/savevm.c): 0x04, be32 id, name (one byte of length, then ASCII), be32
instance, be32 version, the device's own bytes, then 0x7e and the id again. Nothing tells how long the device's bytes
are, so a section's end is found by its footer with the next section's header right behind it. A device's bytes may look
like that by chance; then the rest does not read as sections to the very end, and the search goes on behind it.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

HEAD = b"QEVM\0\0\0\x03"  # QEMU_VM_FILE_MAGIC, QEMU_VM_FILE_VERSION
EOF, FULL, FOOTER = b"\x00", b"\x04", b"\x7e"
FIXED = struct.Struct(">BIB")  # 0x04, the section's id, the name's length
AFTER = struct.Struct(">II")  # instance, version
FOOTER_BYTES = 5
VERSION_MAX = 1 << 16  # QEMU's own are below 200
# Looked at before giving up: a state that a guest made up must not cost more. Some 0.1 s each (docs/facts.md); what is
# searched counts in bytes, a place that may be a footer as LOOK_BYTES.
SECTIONS_MAX = 1 << 14
SEARCH_MAX_BYTES = 256 << 20
LOOK_BYTES = 8 << 10


@dataclass(frozen=True, order=True)
class Section:
    """One device in a state. `instance` tells several of one name apart (`cpu` 0, 1 ...)."""

    name: str
    instance: int

    def __str__(self) -> str:
        return f"{self.name} instance {self.instance}" if self.instance else self.name


@dataclass(frozen=True)
class _Header:
    section: Section
    number: int  # the section's id: its footer repeats it, and no other section has it
    body: int  # where the device's own bytes begin


class Outline:
    """The sections of one state, and where they stand in it: most states after it have them at the same places."""

    def __init__(self, state: bytes, path: list[_Header]) -> None:
        self.sections = [header.section for header in path]
        self._bytes = len(state)
        begins = [header.body - AFTER.size - len(header.section.name) - FIXED.size for header in path]
        # With the footer before it: all that stands between two devices' own bytes.
        spans = [(max(0, begin - FOOTER_BYTES), header.body) for begin, header in zip(begins, path, strict=True)]
        spans.append((len(state) - FOOTER_BYTES - 1, len(state)))
        self._fixed = [(low, high, state[low:high]) for low, high in spans]

    def fits(self, state: bytes) -> bool:
        """Whether this state has the same sections, each as long as it was: no search, some microseconds."""
        return len(state) == self._bytes and all(state[low:high] == there for low, high, there in self._fixed)


def outline_of(state: bytes) -> Outline | None:
    """What is in a whole state; None where it cannot be read (machine types before 2.4 write no footers)."""
    first = _header(state, len(HEAD)) if state.startswith(HEAD) else None
    if first is None:
        return None
    search = _Search(state)
    path: list[tuple[_Header, Iterator[_Header | None]]] = [(first, search.followers(first))]
    dead: set[int] = set()  # where no way leads to the end
    for _ in range(SECTIONS_MAX):
        if not path or search.left < 0:
            return None
        header, followers = path[-1]
        follower = next(followers, header)
        if follower is None:
            return Outline(state, [each for each, _ in path])
        if follower is header:
            dead.add(header.body)
            path.pop()
        elif follower.body not in dead:
            path.append((follower, search.followers(follower)))
    return None


def differences(before: Iterable[Section], after: Iterable[Section]) -> tuple[list[Section], list[Section]]:
    """The sections that came, and those that went."""
    old, new = Counter(before), Counter(after)
    return sorted((new - old).elements()), sorted((old - new).elements())


class _Search:
    """One state, and how much of it may still be searched: less than nothing when that was all."""

    def __init__(self, state: bytes) -> None:
        self._state = state
        self.left = SEARCH_MAX_BYTES

    def followers(self, header: _Header) -> Iterator[_Header | None]:
        """What may come behind this section, the nearest first; None: it is the last one."""
        state, footer = self._state, FOOTER + header.number.to_bytes(4, "big")
        at = header.body
        while self.left >= 0 and (found := state.find(footer + FULL, at)) >= 0:
            self.left -= LOOK_BYTES + found - at
            follower = _header(state, found + len(footer))
            if follower is not None and follower.number != header.number:
                yield follower
            at = found + 1
        self.left -= LOOK_BYTES + max(0, len(state) - at)
        if state.endswith(footer + EOF) and len(state) - len(footer) - 1 >= header.body:
            yield None


def _header(state: bytes, at: int) -> _Header | None:
    """The section header at this place, if it reads as one."""
    if len(state) < at + FIXED.size:
        return None
    kind, number, length = FIXED.unpack_from(state, at)
    name = state[at + FIXED.size : at + FIXED.size + length]
    body = at + FIXED.size + length + AFTER.size
    if kind != FULL[0] or not length or len(state) < body or not all(0x20 <= byte < 0x7F for byte in name):
        return None
    instance, version = AFTER.unpack_from(state, at + FIXED.size + length)
    return _Header(Section(name.decode("ascii"), instance), number, body) if version < VERSION_MAX else None
