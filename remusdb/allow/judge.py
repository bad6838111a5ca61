# SPDX-License-Identifier: Apache-2.0
"""Whether a VM's domain XML has anything that could speak, store or share memory past remusdb: an allowlist.

Pure, and asked by all who take a VM's XML: the preflight on the primary, the rehearsal (which must stay unheard), and
an agent, of an XML that another host sent. What is not known to be harmless is refused by name, with a hint that works
as it is written.
"""

from __future__ import annotations

import functools
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from remusdb.allow.devices import DEVICES
from remusdb.allow.problem import Path, Problem, Vm, edit, shown, vm_of
from remusdb.allow.rules import RULES
from remusdb.allow.table import DOMAIN

FATES = ("rebuilt", "mirrored", "gated", "display", "refused")

# Which check of the preflight tells what is wrong in a part of the XML: the first that fits.
AREAS: Mapping[Path, str] = {
    ("memoryBacking",): "guest memory",
    ("launchSecurity",): "guest memory",
    ("os", "type"): "machine",
    ("os",): "firmware",
    ("devices", "interface"): "interfaces",
    ("devices", "disk"): "disks",
    ("devices",): "devices",
    ("qemu:commandline",): "command line",
    ("qemu:override",): "command line",
    ("qemu:capabilities",): "command line",
    ("qemu:deprecation",): "command line",
}


@dataclass(frozen=True)
class Row:
    """One line of the table. `values`: what an attribute may be, None for anything."""

    fate: str
    values: Mapping[str, frozenset[str] | None]
    any_attribute: bool = False
    anything_inside: bool = False
    nothing_else_inside: bool = False

    def lets(self, name: str, value: str) -> bool:
        """Whether the element may have this attribute."""
        allowed = None if self.any_attribute else self.values.get(name, frozenset())
        return allowed is None or value in allowed


def judge(tree: ET.Element) -> list[Problem]:
    """All that is wrong with the domain XML whose root is `tree`, in its order; nothing when it can be protected."""
    return list(dict.fromkeys(_walk(tree, (), vm_of(tree))))


@functools.cache
def table() -> Mapping[Path, Row]:
    """Every line, by the element's path below `<domain>`."""
    return dict(_row(line) for line in (DOMAIN + DEVICES).splitlines() if line)


def row_of(path: Path) -> Row | None:
    """The line that holds for an element: its own, that of any device, or that of a subtree it is in."""
    rows = table()
    for length in range(len(path), -1, -1):
        part = path[:length]
        row = rows.get(part) or (rows.get((part[0], "*", *part[2:])) if length > 2 else None)
        if row is not None:
            if length == len(path) or row.anything_inside or row.fate == "refused":
                return row
            return Row("refused", {}) if row.nothing_else_inside else None
    return None


def _walk(element: ET.Element, path: Path, vm: Vm) -> Iterator[Problem]:
    row = row_of(path)
    told = list(RULES[path](element, vm)) if path in RULES else []
    if not told and (row is None or row.fate == "refused"):
        told = [_unknown(path, vm)]
    if not told and row is not None:
        odd = [(shown(name), value) for name, value in element.attrib.items() if not row.lets(shown(name), value)]
        told = [_unknown_value(row, path, name, value, vm) for name, value in odd]
    yield from told
    if not told and row is not None and not row.anything_inside:
        for child in element:
            yield from _walk(child, (*path, shown(child.tag)), vm)


def _unknown(path: Path, vm: Vm) -> Problem:
    nested = len(path) > 1 and path[:-1] != ("devices",)
    what = f"<{path[-1]}>" + (f" in <{path[-2]}>" if nested else "")
    return Problem(_area(path), f"{what} is not known to be harmless", edit(vm, f"remove {what}"))


def _unknown_value(row: Row, path: Path, name: str, value: str, vm: Vm) -> Problem:
    where = f"<{path[-1]}>" if path else "<domain>"
    allowed = row.values.get(name)
    instead = f"set {name} of {where} to {' or '.join(sorted(allowed))}" if allowed else f"remove {name} from {where}"
    return Problem(_area(path), f"{name}='{value}' of {where} is not known to be harmless", edit(vm, instead))


def _area(path: Path) -> str:
    return next((area for start, area in AREAS.items() if path[: len(start)] == start), "definition")


def _row(line: str) -> tuple[Path, Row]:
    where, fate, *words = line.split()
    values = {}
    for word in words:
        name, _, choices = word.partition("=")
        values[name] = frozenset(choices.split("|")) if choices else None
    marks = {word for word in ("*", "**", "!") if values.pop(word, True) is None}
    row = Row(fate, values, bool(marks & {"*", "**"}), "**" in marks, "!" in marks)
    return () if where == "." else tuple(where.split("/")), row
