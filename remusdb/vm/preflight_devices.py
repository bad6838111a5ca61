# SPDX-License-Identifier: Apache-2.0
"""The preflight's look at a VM's devices: what could write memory unseen, leave unheld, or not be rebuilt."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator

from remusdb.vm.checks import Check, advice, required
from remusdb.vm.facts import Facts

FORMATS = ("raw", "qcow2")


def decide(facts: Facts, tree: ET.Element) -> list[Check]:
    """The checks over the devices in the XML."""
    ours = f"{facts.run_dir}/"
    return [
        required(
            "guest memory",
            list(_memory(tree)),
            "all of it is QEMU's alone",
            "what writes the guest's memory from outside QEMU is not seen: take it out of the VM's definition",
        ),
        required(
            "devices",
            list(_devices(tree)),
            "all can be rebuilt on the backup",
            "state that lives outside QEMU would be lost: take it out of the VM's definition",
        ),
        required(
            "interfaces",
            list(_interfaces(tree, facts.vm.running)),
            _told_interfaces(tree),
            "put each interface on a Linux bridge",
        ),
        required("disks", list(_disks(tree)), _told_disks(tree), "file-backed raw or qcow2 disks can be replicated"),
        required(
            "media",
            list(_media(tree)),
            "no medium in a drive",
            f"eject it: virsh change-media {facts.vm.name} TARGET --eject",
        ),
        required(
            "block jobs",
            [f"{target} has a block job" for target in facts.vm.block_jobs if not _is_ours(tree, target, ours)],
            "none runs",
            f"let it end, or: virsh blockjob {facts.vm.name} TARGET --abort",
        ),
        required(
            "firmware",
            list(_firmware(tree)),
            "BIOS",
            "the firmware's variables are a file that is not replicated yet; only BIOS guests can be protected",
        ),
        advice(
            "network",
            "" if tree.find("./devices/interface") is not None else "the VM has no interface",
            "its output is held",
            "nobody sees it from outside, so there is nothing to hold",
        ),
    ]


def _memory(tree: ET.Element) -> Iterator[str]:
    """Writers of guest memory that are not QEMU: their writes do not pass its page tables."""
    for host_device in tree.iterfind("./devices/hostdev"):
        yield f"a passed-through {host_device.get('type', 'host')} device"
    for interface in tree.iterfind("./devices/interface"):
        if interface.get("type") in ("hostdev", "vhostuser", "vdpa"):
            yield f"a {interface.get('type')} interface"
    for disk in tree.iterfind("./devices/disk"):
        if disk.get("type") in ("vhostuser", "vhostvdpa", "nvme"):
            yield f"disk {_target(disk)} of type {disk.get('type')}"
    for filesystem in tree.iterfind("./devices/filesystem"):
        driver = filesystem.find("driver")
        if driver is not None and driver.get("type") == "virtiofs":
            yield "a virtiofs share"
    for tag in ("video", "gpu", "input"):
        for device in tree.iterfind(f"./devices/{tag}/driver[@name='vhostuser']"):
            yield f"a vhost-user {tag} ({device.get('name')})"
    if tree.find("./devices/shmem") is not None:
        yield "shared memory with another process (shmem)"
    if tree.find("./launchSecurity") is not None:
        yield "encrypted memory (launchSecurity)"
    backing = tree.find("./memoryBacking/source")
    if backing is not None and backing.get("type") == "file":
        yield "memory backed by files, whose writes cannot be tracked (memfd and anonymous can)"


def _devices(tree: ET.Element) -> Iterator[str]:
    if tree.find("./devices/tpm") is not None:
        yield "a TPM: its state is in a process or chip of this host"
    for filesystem in tree.iterfind("./devices/filesystem"):
        driver = filesystem.find("driver")
        if driver is None or driver.get("type") != "virtiofs":
            yield "a shared folder of this host (9p)"
    if tree.find("./devices/video/model/acceleration[@accel3d='yes']") is not None:
        yield "a 3D-accelerated display: its state is in this host's GPU"
    if tree.find("./devices/vsock") is not None:
        yield "a vsock: its connections end on this host"
    for memory in tree.iterfind("./devices/memory"):
        if memory.get("model") in ("nvdimm", "virtio-pmem", "sgx-epc"):
            yield f"{memory.get('model')} memory"
    for tag in ("serial", "parallel", "console", "smartcard"):
        for device in tree.iterfind(f"./devices/{tag}"):
            if device.get("type") in ("dev", "host", "passthrough"):
                yield f"a {tag} device that is this host's own"


def _interfaces(tree: ET.Element, running: bool) -> Iterator[str]:
    """What keeps a gate from being put between an interface and its bridge. Taps are there only while it runs."""
    for interface in tree.iterfind("./devices/interface"):
        kind = interface.get("type", "")
        if kind in ("hostdev", "vhostuser", "vdpa"):
            continue  # told already, with the memory
        name = _address(interface)
        source, target = interface.find("source"), interface.find("target")
        bridged = source is not None and bool(source.get("bridge"))
        if kind not in ("bridge", "network") or (running and not bridged):
            yield f"{name} is of type {kind}, not on a bridge"
        elif running and (target is None or not target.get("dev")):
            yield f"{name} has no tap"
        virtualport = interface.find("virtualport")
        if virtualport is not None and virtualport.get("type") == "openvswitch":
            yield f"{name} is on an Open vSwitch bridge"
        # Both are rules on the tap by its name: the gate stands between tap and bridge, so they would be passed by.
        if interface.find("filterref") is not None:
            yield f"{name} has a filterref"
        if interface.find("bandwidth") is not None:
            yield f"{name} has a bandwidth limit"


def _disks(tree: ET.Element) -> Iterator[str]:
    for disk in tree.iterfind("./devices/disk"):
        if disk.get("device", "disk") in ("cdrom", "floppy") or disk.get("type") in ("vhostuser", "vhostvdpa", "nvme"):
            continue
        target, driver = _target(disk), disk.find("driver")
        found = driver.get("type", "raw") if driver is not None else "raw"
        if disk.get("device", "disk") != "disk":
            yield f"{target} is a {disk.get('device')}"
        if disk.get("type") != "file":
            yield f"{target} is of type {disk.get('type')}, not a file"
        elif found not in FORMATS:
            yield f"{target} has format {found}"
        for tag, why in (
            ("readonly", "is read-only, and would not be mirrored"),
            ("shareable", "is shared with other VMs"),
            ("transient", "is transient"),
        ):
            if disk.find(tag) is not None:
                yield f"{target} {why}"
        if disk.find("./source/encryption") is not None or disk.find("encryption") is not None:
            yield f"{target} is encrypted, and its replica would not be"


def _media(tree: ET.Element) -> Iterator[str]:
    for disk in tree.iterfind("./devices/disk"):
        source = disk.find("source")
        if disk.get("device") in ("cdrom", "floppy") and source is not None and source.attrib:
            yield f"{_target(disk)} has a medium, which the backup does not have"


def _firmware(tree: ET.Element) -> Iterator[str]:
    os_element = tree.find("os")
    if os_element is None:
        return
    loader = os_element.find("loader")
    efi = os_element.get("firmware") == "efi" or os_element.find("nvram") is not None
    if efi or (loader is not None and loader.get("type") == "pflash"):
        yield "UEFI"


def _is_ours(tree: ET.Element, target: str, folder: str) -> bool:
    """Whether the job is the mirror of an earlier worker, which the next one ends."""
    for disk in tree.iterfind("./devices/disk"):
        host = disk.find("./mirror/source/host")
        if _target(disk) == target and host is not None:
            return host.get("socket", "").startswith(folder)
    return False


def _told_interfaces(tree: ET.Element) -> str:
    sources = tree.iterfind("./devices/interface/source")
    bridges = {source.get("bridge") or f"network {source.get('network')}" for source in sources}
    return f"on {', '.join(sorted(bridges))}" if bridges else "none"


def _told_disks(tree: ET.Element) -> str:
    disks = [_target(disk) for disk in tree.iterfind("./devices/disk") if disk.get("device", "disk") == "disk"]
    return ", ".join(disks) or "none"


def _target(disk: ET.Element) -> str:
    target = disk.find("target")
    return target.get("dev", "?") if target is not None else "?"


def _address(interface: ET.Element) -> str:
    mac = interface.find("mac")
    return f"interface {mac.get('address', '')}" if mac is not None else "an interface"
