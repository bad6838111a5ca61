# SPDX-License-Identifier: Apache-2.0
"""From the primary's live domain XML to a rehearsal's: the same machine with nothing of it that reaches outside.

Pure. As for the standby the guest must find the very same devices, so what stands behind them is replaced: disks by
overlays, interfaces by taps on no bridge, every character device by a file, displays by none. What is left must pass
the list that `protect` goes by (remusdb.allow.judge): that lets through only what is known to be harmless.
"""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from remusdb import safexml
from remusdb.allow.characters import AGENT, LOG_FOLDER
from remusdb.allow.judge import judge
from remusdb.allow.problem import joined, vm_of
from remusdb.errors import CannotProtect
from remusdb.vm.prepare import QEMU_NS
from remusdb_agents.backup.standby.nvram import FILE as NVRAM_FILE
from remusdb_agents.backup.standby.xml import standby_xml

MARKER_NS = "urn:remusdb:rehearsal"  # what tells our domains from anybody else's of such a name
ET.register_namespace("remusdb", MARKER_NS)

SUFFIX = "-rehearsal"
SERIAL_FILE = "serial.log"
INTERFACE_BACKENDS = ("source", "target", "virtualport", "bandwidth", "filterref", "vlan", "port", "script", "backend")


def rehearsal_xml(live: str, overlays: Mapping[str, Path], *, uuid: str, tap_prefix: str, folder: Path) -> str:
    """The XML of the copy; CannotProtect when the VM has a part that cannot be cut off from this host.

    `overlays`: qcow2 files by the disks' targets. Taps are named `tap_prefix`0, 1... UEFI variables and what the guest
    prints are files in `folder`, its first serial port SERIAL_FILE.
    """
    root = safexml.parse(standby_xml(live, overlays, {}, None, folder / NVRAM_FILE))
    _host_side(root)
    _displays(root)
    _require_unheard(root)
    name = root.find("name")
    assert name is not None
    vm, name.text = name.text or "", (name.text or "") + SUFFIX
    _identity(root, vm, uuid)
    _disks(root, overlays)
    for number, interface in enumerate(root.iterfind("./devices/interface")):
        _interface(interface, f"{tap_prefix}{number}")
    _characters(root, folder)
    return ET.tostring(root, encoding="unicode")


def _identity(root: ET.Element, vm: str, uuid: str) -> None:
    _text(root, "uuid", uuid)
    # The guest has read its tables long ago; libvirt insists that this one is the domain's.
    for system in root.iterfind("./sysinfo/system"):
        for entry in system.findall("entry[@name='uuid']"):
            system.remove(entry)
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(root, "metadata")
    ET.SubElement(metadata, f"{{{MARKER_NS}}}of").text = vm
    for what, action in (("on_poweroff", "destroy"), ("on_reboot", "destroy"), ("on_crash", "preserve")):
        _text(root, what, action)


def _host_side(root: ET.Element) -> None:
    """An audio backend is this host's."""
    _memory(root)
    for audio in root.iterfind("./devices/audio"):
        number = audio.get("id", "1")
        audio.clear()
        audio.attrib.update(id=number, type="none")


def _memory(root: ET.Element) -> None:
    """Huge, locked or allocated pages would be needed twice; and nothing can be lent to a file on a disk."""
    backing = root.find("memoryBacking")
    if backing is not None:
        for tag in ("hugepages", "locked", "allocation"):
            for child in backing.findall(tag):
                backing.remove(child)
    source = root.find("./memoryBacking/source")
    shared = root.find("./memoryBacking/access[@mode='shared']")
    cell = root.find("./cpu/numa/cell[@memAccess='shared']")
    if source is not None:
        source.set("type", "memfd" if source.get("type") == "file" else source.get("type", ""))
    elif shared is not None or cell is not None:  # libvirt would take a file
        backing = backing if backing is not None else ET.SubElement(root, "memoryBacking")
        ET.SubElement(backing, "source", {"type": "memfd"})


def _require_unheard(root: ET.Element) -> None:
    """Whatever this host does not replace in it must be known to be harmless."""
    quiet = copy.deepcopy(root)
    _characters(quiet, Path(LOG_FOLDER))
    if problems := judge(quiet):
        told = "; ".join(problem.what for problem in problems)
        hint = f"where it runs: {joined(vm_of(root), (problem.hint for problem in problems))}"
        raise CannotProtect(f"the VM has what leads out of a rehearsal: {told}", hint=hint)


def _disks(root: ET.Element, overlays: Mapping[str, Path]) -> None:
    override = root.find(f"{{{QEMU_NS}}}override")
    if override is None:
        override = ET.SubElement(root, f"{{{QEMU_NS}}}override")
    for disk in root.iterfind("./devices/disk"):
        target, driver, alias = disk.find("target"), disk.find("driver"), disk.find("alias")
        if target is None or target.get("dev") not in overlays or driver is None or alias is None:
            continue
        driver.set("type", "qcow2")
        # The standby may be resumed while this QEMU is still there: its lock on the image behind the overlay must
        # allow writers.
        device = ET.SubElement(override, f"{{{QEMU_NS}}}device", {"alias": alias.get("name", "")})
        frontend = ET.SubElement(device, f"{{{QEMU_NS}}}frontend")
        words = {"name": "share-rw", "type": "bool", "value": "true"}
        ET.SubElement(frontend, f"{{{QEMU_NS}}}property", words)


def _interface(interface: ET.Element, tap: str) -> None:
    """A tap that libvirt makes and puts nowhere."""
    interface.set("type", "ethernet")
    interface.attrib.pop("trustGuestRxFilters", None)
    for name in INTERFACE_BACKENDS:
        for child in interface.findall(name):
            interface.remove(child)
    ET.SubElement(interface, "target", {"dev": tap, "managed": "yes"})


def _characters(root: ET.Element, folder: Path) -> None:
    """Serial ports and consoles print to files; a channel of libvirt's own (the guest agent's) stays as it is."""
    for tag in ("serial", "parallel", "console"):
        for number, device in enumerate(root.findall(f"./devices/{tag}")):
            target = device.find("target")
            mirrors = tag == "console" and (target is None or target.get("type", "serial") == "serial")
            first = number == 0 and (tag == "serial" or mirrors)  # the first console is the first serial port
            _to_file(device, folder / (SERIAL_FILE if first else f"{tag}{number}.log"))
    for number, channel in enumerate(root.iterfind("./devices/channel")):
        target = channel.find("target")
        libvirts = channel.get("type") == "unix" and target is not None and target.get("name") == AGENT
        if not libvirts and channel.get("type") != "spicevmc":
            _to_file(channel, folder / f"channel{number}.log")


def _to_file(device: ET.Element, path: Path) -> None:
    device.set("type", "file")
    device.attrib.pop("tty", None)
    for tag in ("source", "log", "protocol"):
        for child in device.findall(tag):
            device.remove(child)
    ET.SubElement(device, "source", {"path": str(path)})


def _displays(root: ET.Element) -> None:
    """A display stays a display; nobody can connect to it."""
    for graphics in root.iterfind("./devices/graphics"):
        for name in ("port", "tlsPort", "websocket", "autoport", "listen", "socket"):
            graphics.attrib.pop(name, None)
        for child in graphics.findall("listen"):
            graphics.remove(child)
        ET.SubElement(graphics, "listen", {"type": "none"})


def _text(root: ET.Element, tag: str, text: str) -> None:
    found = root.find(tag)
    (found if found is not None else ET.SubElement(root, tag)).text = text
