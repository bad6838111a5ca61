# SPDX-License-Identifier: Apache-2.0
"""What a VM's XML names of the host that runs it: files, addresses, CPUs, bridges. Pure; both hosts ask the same.

The backup answers about these, and about nothing else, so whoever asks cannot make it look at a path in any place of
the XML: only where libvirt's schema has a file that QEMU or libvirt opens on the standby. What the standby gets new
(disks, ptys, libvirt's own sockets) is not asked for.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["program", "file", "folder"]

MAX_PATHS = 64
PATH_MAX = 4096  # limits.h
MAX_NUMBER = 8192  # CPUs and nodes: the most that a kernel can have (NR_CPUS)
SET_MAX_CHARS = (
    16_384  # of a set: a list of every other CPU is as long at most, and what a peer says of itself is a set too
)

# Where libvirt's schema (domaincommon.rng) has a path that is opened on the standby as it is: XPath, attribute (None:
# the text), what it is. tests/unit/test_needs.py finds each path of the schema here, or named as not needed.
_OPENED: tuple[tuple[str, str | None, str, Kind], ...] = (
    ("./os/loader", None, "firmware", "file"),
    ("./os/nvram", "template", "template of the firmware's variables", "file"),
    ("./os/kernel", None, "kernel", "file"),
    ("./os/initrd", None, "initrd", "file"),
    ("./os/shim", None, "boot loader", "file"),
    ("./os/dtb", None, "device tree", "file"),
    ("./os/acpi/table", None, "ACPI table", "file"),
    ("./sysinfo[@type='fwcfg']/entry", "file", "fwcfg file", "file"),
    ("./devices/*/rom", "file", "option ROM", "file"),
    ("./devices/interface/backend", "tap", "tap device", "file"),
    ("./devices/interface/backend", "vhost", "vhost device", "file"),
    ("./devices/interface/script", "path", "interface script", "program"),
    ("./devices/disk[@device='cdrom']/source", "file", "medium", "file"),
    ("./devices/disk[@device='cdrom']/source", "dev", "medium", "file"),
    ("./devices/disk[@device='floppy']/source", "file", "medium", "file"),
    ("./devices/disk[@device='floppy']/source", "dev", "medium", "file"),
    ("./devices/disk/source/identity", "keyfile", "SSH key", "file"),
    ("./devices/disk/source/knownHosts", "path", "known hosts", "file"),
    ("./devices/disk/source/config", "file", "Ceph configuration", "file"),
    ("./devices/graphics/gl", "rendernode", "render node", "file"),
    ("./devices/video/model/acceleration", "rendernode", "render node", "file"),
    ("./devices/input/source", "dev", "input device", "file"),
    ("./devices/input/source", "evdev", "input device", "file"),
    ("./devices/rng/backend[@model='random']", None, "random source", "file"),
    ("./devices/memory/source/path", None, "memory file", "file"),
    ("./devices/smartcard/database", None, "certificates", "folder"),
)
_CPU_SETS = (
    ("./vcpu", "vcpu", ""),
    ("./cputune/vcpupin", "vcpupin", "vcpu"),
    ("./cputune/emulatorpin", "emulatorpin", ""),
    ("./cputune/iothreadpin", "iothreadpin", "iothread"),
)
_NODE_SETS = ("./numatune/memory", "./numatune/memnode")
_UNITS = {"b": 1, "bytes": 1, "byte": 1}
_UNITS |= {
    f"{letter}{rest}": base**power
    for power, letter in enumerate("KMGTPE", 1)
    for rest, base in (("iB", 1024), ("B", 1000))
}
_UNITS |= {letter.lower(): 1024**power for power, letter in enumerate("KMGTPE", 1)}
_PIECE = re.compile(r"(\^?)(\d+)(?:-(\d+))?\Z")


@dataclass(frozen=True)
class Path:
    """One path: what it is to the VM, and what must be there."""

    path: str
    what: str
    kind: Kind


@dataclass(frozen=True)
class Listen:
    """An address that QEMU listens on; `port` 0: any that is free."""

    address: str
    port: int = 0

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def paths(tree: ET.Element) -> list[Path]:
    """What must be on the disks of the host, each path once. The backup answers about the first MAX_PATHS."""
    found: dict[str, Path] = {}
    for _, _, one in opened(tree):
        if one.path.startswith("/") and len(one.path) < PATH_MAX and "\0" not in one.path:
            found.setdefault(one.path, one)
    return list(found.values())


def opened(tree: ET.Element) -> Iterator[tuple[ET.Element, str | None, Path]]:
    """Each place of a file: its element, its attribute (None: the text), and whatever is said there."""
    for xpath, attribute, what, kind in _OPENED:
        for element in tree.iterfind(xpath):
            yield element, attribute, Path(element.get(attribute, "") if attribute else element.text or "", what, kind)


def listens(tree: ET.Element) -> list[Listen]:
    """Addresses of displays. A port that libvirt chooses is not asked for."""
    found = []
    for graphics in tree.iterfind("./devices/graphics"):
        fixed = graphics.get("autoport") == "no"
        ports = [number(graphics.get(name)) for name in ("port", "tlsPort", "websocket")] if fixed else []
        for element in graphics.findall("listen") or [graphics]:
            address = element.get("address") or (graphics.get("listen") if element.get("type") != "socket" else None)
            if address:
                found += [Listen(address, port) for port in ports if 0 < port < 65536] or [Listen(address)]
    return list(dict.fromkeys(found))


def own_taps(tree: ET.Element) -> list[str]:
    """Names of taps that the definition asks for; libvirt's own ones are chosen again."""
    targets = (target.get("dev", "") for target in tree.iterfind("./devices/interface/target"))
    return [name for name in targets if name and not name.startswith(("vnet", "tap"))]


def cpu_pins(tree: ET.Element) -> dict[str, set[int]]:
    """Host CPUs that the VM's threads are pinned to, by what is pinned."""
    found = {}
    for xpath, what, number_of in _CPU_SETS:
        for element in tree.iterfind(xpath):
            cpus = parse_set(element.get("cpuset", ""))
            if cpus:
                found[f"{what} {element.get(number_of)}" if number_of else what] = cpus
    return found


def nodes(tree: ET.Element) -> set[int]:
    """Host NUMA nodes that its memory is bound to."""
    sets = [element.get("nodeset", "") for path in _NODE_SETS for element in tree.iterfind(path)]
    sets += [mask.text or "" for mask in tree.iterfind("./devices/memory/source/nodemask")]
    return set().union(*(parse_set(text) for text in sets))


def memory_bytes(tree: ET.Element) -> int:
    """The VM's RAM; 0 if the XML does not say."""
    memory = tree.find("memory")
    return size_bytes(memory.text, memory.get("unit", "KiB")) if memory is not None else 0


def huge_page_bytes(tree: ET.Element, default: int) -> set[int]:
    """Sizes of the huge pages that its RAM is made of; `default` where it names none. Nothing without huge pages."""
    huge = tree.find("./memoryBacking/hugepages")
    if huge is None:
        return set()
    pages = huge.findall("page")
    return {size_bytes(page.get("size"), page.get("unit", "KiB")) for page in pages} or {default}


def size_bytes(text: str | None, unit: str) -> int:
    """A scaled integer of libvirt's (units: virScaleInteger); 0 for anything else."""
    scale = _UNITS.get(unit) or _UNITS.get(f"{unit}iB", 0) if unit else 1
    return number((text or "").strip()) * scale


def parse_set(text: str) -> set[int]:
    """`0-3,^2,8`, as libvirt and the kernel write sets. What is no number counts for nothing."""
    found: set[int] = set()
    for piece in text[:SET_MAX_CHARS].replace(" ", "").replace("\n", "").split(","):
        match = _PIECE.match(piece)
        if match is None or len(piece) > 16 or int(match[3] or match[2]) > MAX_NUMBER:
            continue
        named = range(int(match[2]), int(match[3] or match[2]) + 1)
        found = found.difference(named) if match[1] else found.union(named)
    return found


def number(text: str | None) -> int:
    """A whole number, 0 for anything else."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 16 else 0
