# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a VM's domain XML, as a value, and the words that all such values share."""

from __future__ import annotations

import shlex
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from remusdb.vm.prepare import QEMU_NS

NEXT_START = "; in effect from the VM's next start"
Path = tuple[str, ...]  # of an element, below <domain>


class Problem(NamedTuple):
    """One thing that keeps a VM from being protected. `area`: the preflight's check that tells it."""

    area: str
    what: str
    hint: str


@dataclass(frozen=True)
class Vm:
    """A VM as hints name it: by its name as a shell takes it."""

    name: str
    running: bool

    def __str__(self) -> str:
        return self.name

    @property
    def scope(self) -> str:
        """The options by which virsh changes all there is of it: with `--live` it refuses a VM that is off."""
        return "--live --config" if self.running else "--config"


Rule = Callable[[ET.Element, Vm], Iterator[Problem]]  # an element of a VM, to what is wrong with it


def edit(vm: Vm, what: str) -> str:
    """A hint to change the definition."""
    return f"virsh edit {vm}: {what}{NEXT_START}"


def joined(vm: Vm, hints: Iterable[str]) -> str:
    """Hints as one: all that is to be edited in one go, then the others."""
    told = list(dict.fromkeys(hints))
    start = f"virsh edit {vm}: "
    edits = [hint for hint in told if hint.startswith(start) and hint.endswith(NEXT_START)]
    whats = ", ".join(hint.removeprefix(start).removesuffix(NEXT_START) for hint in edits)
    return "; ".join([edit(vm, whats)] * bool(edits) + [hint for hint in told if hint not in edits])


def vm_of(tree: ET.Element) -> Vm:
    """The VM of a domain XML; libvirt gives only those that run an id."""
    return Vm(shlex.quote(tree.findtext("name") or "VM"), tree.get("id") is not None)


def shown(tag: str) -> str:
    """A tag or attribute as one writes it: `qemu:` for QEMU's namespace, `{URI}` for a stranger's."""
    return tag.replace(f"{{{QEMU_NS}}}", "qemu:")


def target_of(disk: ET.Element) -> str:
    """A disk's name in the VM (`vda`)."""
    target = disk.find("target")
    return target.get("dev", "?") if target is not None else "?"
