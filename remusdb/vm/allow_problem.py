# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a VM's domain XML, as a value, and the words that all such values share."""

from __future__ import annotations

import shlex
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from typing import NamedTuple

from remusdb.vm.prepare import QEMU_NS

Path = tuple[str, ...]  # of an element, below <domain>


class Problem(NamedTuple):
    """One thing that keeps a VM from being protected. `area`: the preflight's check that tells it."""

    area: str
    what: str
    hint: str


Rule = Callable[[ET.Element, str], Iterator[Problem]]  # an element and the VM's name, quoted, to what is wrong with it


def edit(vm: str, what: str) -> str:
    """A hint to change the definition; `vm` is quoted already."""
    return f"virsh edit {vm}: {what}; in effect from the VM's next start"


def vm_of(tree: ET.Element) -> str:
    """The VM's name as a shell takes it."""
    return shlex.quote(tree.findtext("name") or "VM")


def shown(tag: str) -> str:
    """A tag or attribute as one writes it: `qemu:` for QEMU's namespace, `{URI}` for a stranger's."""
    return tag.replace(f"{{{QEMU_NS}}}", "qemu:")


def target_of(disk: ET.Element) -> str:
    """A disk's name in the VM (`vda`)."""
    target = disk.find("target")
    return target.get("dev", "?") if target is not None else "?"
