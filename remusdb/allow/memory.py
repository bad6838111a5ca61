# SPDX-License-Identifier: Apache-2.0
"""Guest memory: who else could write it, and in which pages it may be.

Memory in a file (on tmpfs or any other file system), shared or private, is tracked like any other: docs/facts.md. So
`<source>` and `<access>` are no matter; a second process that maps the same memory is, and is refused by its device.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator

from remusdb.allow.problem import Problem, Vm, edit

HUGE_BYTES = 2 << 20  # x86-64's ordinary huge page: the largest of which a scan of 64 MiB tells anything
UNITS = {
    "b": 1, "bytes": 1, "KB": 1000, "k": 1 << 10, "KiB": 1 << 10, "MB": 10**6, "M": 1 << 20, "MiB": 1 << 20,
    "GB": 10**9, "G": 1 << 30, "GiB": 1 << 30, "TB": 10**12, "T": 1 << 40, "TiB": 1 << 40,
}  # fmt: skip


def bytes_of(value: str, unit: str) -> int:
    """A size as libvirt writes it; without a unit it is in KiB. 0 for what is no size."""
    return int(value) * UNITS.get(unit or "KiB", 1 << 10) if value.strip().isdigit() else 0


def page(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """`<page>` of `<hugepages>`, and `<pagesize>` of a memory module."""
    size = bytes_of(element.get("size") or element.text or "", element.get("unit", ""))
    if size > HUGE_BYTES:
        yield too_huge(size, vm)


def too_huge(size: int, vm: Vm) -> Problem:
    """What is said of pages of `size` bytes."""
    hint = edit(vm, "<hugepages><page size='2' unit='MiB'/></hugepages>, or without <hugepages>")
    return Problem("guest memory", f"huge pages of {size >> 20} MiB: each write would copy all of one", hint)


def hostdev(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """A passed-through device writes memory by DMA, and its own state cannot be had."""
    kind = element.get("type", "host")
    yield _foreign(f"a passed-through {kind} device", f"remove <hostdev type='{kind}'>", vm)


def filesystem(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """Shares of this host's folders."""
    driver, target = element.find("driver"), element.find("target")
    name = f" ({target.get('dir')})" if target is not None and target.get("dir") else ""
    if driver is not None and driver.get("type") == "virtiofs":
        yield _foreign(f"a virtiofs share{name}", "remove <filesystem>", vm)
    else:
        what = f"a shared folder of this host (9p){name}, whose files are not mirrored"
        yield Problem("devices", what, edit(vm, "remove <filesystem>"))


def shmem(_element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """ivshmem."""
    yield _foreign("shared memory with another process (shmem)", "remove <shmem>", vm)


def launch_security(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """SEV, TDX: nobody can read it, which is their point."""
    kind = element.get("type", "")
    yield _foreign(f"encrypted memory (launchSecurity {kind})", "remove <launchSecurity>", vm)


def video(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """Displays that another process or a GPU draws."""
    driver, model = element.find("driver"), element.find("model")
    if driver is not None and driver.get("name") == "vhostuser":
        yield _foreign("a vhost-user video", "remove <driver name='vhostuser'> from <video>", vm)
    elif model is not None and model.find("acceleration[@accel3d='yes']") is not None:
        hint = edit(vm, "accel3d='no' in <acceleration> of <video>")
        yield Problem("devices", "a 3D-accelerated display: its state is in this host's GPU", hint)


def module(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """Memory modules that are files or enclaves of this host."""
    if (model := element.get("model", "")) in ("nvdimm", "virtio-pmem", "sgx-epc"):
        hint = edit(vm, f"remove <memory model='{model}'>")
        yield Problem("devices", f"{model} memory: what is in it is not on the backup", hint)


def _foreign(what: str, instead: str, vm: Vm) -> Problem:
    return Problem("guest memory", what, edit(vm, f"{instead}: it writes the guest's memory unseen by QEMU"))
