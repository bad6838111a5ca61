# SPDX-License-Identifier: Apache-2.0
"""The preflight's look at a VM's devices: what could write memory unseen, leave unheld, or not be rebuilt.

What the XML alone tells is judged by judge.py; here it is told as checks, with what only a look at a running VM shows.
"""

from __future__ import annotations

import shlex
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from remusdb.allow import firmware
from remusdb.allow.interfaces import FOREIGN_WRITERS, name_of
from remusdb.allow.judge import judge
from remusdb.allow.memory import HUGE_BYTES, too_huge
from remusdb.allow.problem import Problem, Vm, edit, joined, target_of, vm_of
from remusdb.preflight.checks import Check, advice
from remusdb.preflight.gather import Inventory


def decide(inventory: Inventory, tree: ET.Element) -> list[Check]:
    """The checks over what is in the XML."""
    problems = [*_judged(inventory, tree), *_interfaces(inventory, tree), *_block_jobs(inventory, tree)]
    good = {
        "guest memory": "all of it is QEMU's alone",
        "devices": "all can be rebuilt on the backup",
        "interfaces": _told_interfaces(tree),
        "disks": _told_disks(tree),
        "media": "no medium in a drive",
        "block jobs": "none runs",
        "firmware": firmware.told(tree),
        "machine": _machine_of(tree),
        "on_crash": "nothing starts it again",
        "command line": "nothing that libvirt does not know of",
        "definition": "nothing else that is not known",
    }
    checks = [
        _check(vm_of(tree), area, told, [found for found in problems if found.area == area])
        for area, told in good.items()
    ]
    return [*checks, _network(tree), _huge_pages(inventory, tree)]


def _judged(inventory: Inventory, tree: ET.Element) -> Iterator[Problem]:
    """What the XML tells, and what it means on this host: aliases of machine types, the default huge page."""
    kind, vm, real = _machine_of(tree), vm_of(tree), inventory.vm.canonical
    alias = bool(real) and real != kind
    yield from (problem for problem in judge(tree) if not (alias and problem.area == "machine"))
    if alias:
        why = f"machine type `{kind}` is an alias, of {real} here: the backup may take it for another one"
        yield Problem("machine", why, edit(vm, f"machine='{real}'"))
    if _default_pages(tree) and inventory.host.huge_page_bytes > HUGE_BYTES:
        yield too_huge(inventory.host.huge_page_bytes, vm)


def _default_pages(tree: ET.Element) -> bool:
    huge = tree.find("./memoryBacking/hugepages")
    return huge is not None and huge.find("page") is None


def _huge_pages(inventory: Inventory, tree: ET.Element) -> Check:
    problem = "in huge pages: each that was written counts as 512 pages, and some 0.2 ms of pause to copy it"
    hint = edit(vm_of(tree), "without <hugepages> pauses are shorter")
    has = tree.find("./memoryBacking/hugepages") is not None
    return advice("memory pages", problem if has else "", "of 4 KiB", hint)


def _check(vm: Vm, area: str, good: str, problems: list[Problem]) -> Check:
    detail = "; ".join(problem.what for problem in problems)
    return Check(area, not problems, "required", detail or good, joined(vm, (problem.hint for problem in problems)))


def _network(tree: ET.Element) -> Check:
    return advice(
        "network",
        "" if tree.find("./devices/interface") is not None else "the VM has no interface",
        "its output is held",
        "no client reaches it from outside, so there is nothing to hold",
    )


def _interfaces(inventory: Inventory, tree: ET.Element) -> Iterator[Problem]:
    """Bridge and tap of each interface, which are there only while the VM runs."""
    for interface in tree.iterfind("./devices/interface") if inventory.vm.running else ():
        source, target, kind = interface.find("source"), interface.find("target"), interface.get("type", "")
        name, vm = name_of(interface), vm_of(tree)
        if kind in FOREIGN_WRITERS or kind not in ("bridge", "network"):
            continue  # told already
        if source is None or not source.get("bridge"):
            hint = edit(vm, f"make {name} <interface type='bridge'> with <source bridge='BRIDGE'/>")
            yield Problem("interfaces", f"{name} is of type {kind}, not on a bridge", hint)
        elif target is None or not target.get("dev"):
            yield Problem("interfaces", f"{name} has no tap", f"virsh shutdown {vm}, then: virsh start {vm}")


def _block_jobs(inventory: Inventory, tree: ET.Element) -> Iterator[Problem]:
    vm = shlex.quote(inventory.vm.name)
    for target in inventory.vm.block_jobs:
        if not _is_ours(tree, target, f"{inventory.run_dir}/"):
            hint = f"let it end, or: virsh blockjob {vm} {target} --abort"
            yield Problem("block jobs", f"{target} has a block job", hint)


def _is_ours(tree: ET.Element, target: str, folder: str) -> bool:
    """Whether the job is the mirror of an earlier worker, which the next one ends."""
    for disk in tree.iterfind("./devices/disk"):
        host = disk.find("./mirror/source/host")
        if target_of(disk) == target and host is not None:
            return host.get("socket", "").startswith(folder)
    return False


def _machine_of(tree: ET.Element) -> str:
    kind = tree.find("./os/type")
    return kind.get("machine", "") if kind is not None else ""


def _told_interfaces(tree: ET.Element) -> str:
    sources = tree.iterfind("./devices/interface/source")
    bridges = {source.get("bridge") or f"network {source.get('network')}" for source in sources}
    return f"on {', '.join(sorted(bridges))}" if bridges else "none"


def _told_disks(tree: ET.Element) -> str:
    disks = [target_of(disk) for disk in tree.iterfind("./devices/disk") if disk.get("device", "disk") == "disk"]
    return ", ".join(disks) or "none"
