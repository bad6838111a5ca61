# SPDX-License-Identifier: Apache-2.0
"""What a VM's XML says of the host that it runs on, taken out of it: this host chooses all of that itself.

Pure. The guest's view stays as it is: the same devices, at the same addresses. What is behind them is not the sender's
to choose (docs/decisions/0018): QEMU's program, files, sockets, labels, cgroups. Where something must be there, it is
put in afterwards by who knows this host (xml.py); what a guest prints goes to files of a fixed name.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from remusdb.allow.characters import LOG_FOLDER
from remusdb.names import file_stem

# Labels switch the confinement of QEMU off, or make it root; a partition, a resource group and a block device of the
# other host's mean nothing here.
GONE = (
    "seclabel", "resource", "perf", "cputune/cachetune", "cputune/memorytune", "cputune/energytune", "cputune/identity",
    "blkiotune/device", "devices/*/source/seclabel",
    "devices/disk/mirror", "devices/disk/backingStore", "devices/disk/backenddomain", "devices/disk/snapshot",
    "devices/disk/privateData", "devices/disk/driver/metadata_cache",
)  # fmt: skip
OURS = "urn:remusdb:"  # namespaces by which the agent knows domains of its own
CHARACTERS = ("serial", "parallel", "console", "channel", "redirdev", "smartcard")
_DUMP, _NO_DUMP = "coredump-destroy", "destroy"


def strip(root: ET.Element) -> None:
    """Take it out of a domain, in place. Twice does no more than once."""
    root.attrib.pop("id", None)
    for path in GONE:
        _remove(root, path)
    for element in root.iterfind("./metadata"):
        for child in [child for child in element if child.tag.startswith(f"{{{OURS}")]:
            element.remove(child)
    for element in root.iterfind("./on_crash"):
        if (element.text or "").strip() == _DUMP:  # a dump is as large as the guest's memory, on this host's disk
            element.text = _NO_DUMP
    for element in root.iterfind("./os/nvram"):
        _variables(element)
    for element in root.iterfind("./devices/disk"):
        _disk(element)
    for element in root.iterfind("./devices/interface"):
        _interface(element)
    for element in root.iterfind("./devices/graphics"):
        _display(element)
    for device, path in character_files(root):
        _character(device, path)


def choose_emulator(root: ET.Element, emulator: Path | None) -> None:
    """Have it run by `emulator`, a program of this host's, whatever it names; None: by the one that libvirt has."""
    _remove(root, "devices/emulator")
    devices = root.find("./devices")
    if emulator is not None and devices is not None:
        own = ET.Element("emulator")
        own.text = str(emulator)
        devices.insert(0, own)


def character_files(root: ET.Element) -> Iterator[tuple[ET.Element, str]]:
    """Each character device with the file that holds what the guest prints there, where it prints to one."""
    start = LOG_FOLDER + file_stem(root.findtext("name") or "")
    for tag in CHARACTERS:
        for number, device in enumerate(root.findall(f"./devices/{tag}")):
            target = device.find("target")
            mirrors = tag == "console" and (target is None or target.get("type", "serial") == "serial")
            kind = "serial" if number == 0 and mirrors else tag  # the first console is the first serial port
            yield device, f"{start}-{kind}{number or ''}"


def _remove(root: ET.Element, path: str) -> None:
    above, _, tag = path.rpartition("/")
    for parent in root.iterfind(f"./{above}") if above else (root,):
        for child in parent.findall(tag):
            parent.remove(child)


def _variables(nvram: ET.Element) -> None:
    """The template stays: from it libvirt makes the variables again, if the file is gone one day."""
    kept = {name: nvram.get(name, "") for name in ("template", "templateFormat") if nvram.get(name)}
    nvram.clear()
    nvram.attrib.update(kept)


def _disk(disk: ET.Element) -> None:
    source, driver = disk.find("source"), disk.find("driver")
    disk.attrib.pop("snapshot", None)
    if driver is not None:
        driver.attrib.pop("discard_no_unref", None)  # qcow2 alone has it, and the replica is raw
    for extra in disk.findall("source")[1:]:
        disk.remove(extra)
    if disk.get("device", "disk") != "disk":
        disk.set("type", "file")
        if source is not None:
            disk.remove(source)
    elif source is not None:
        source.clear()


def _interface(interface: ET.Element) -> None:
    source, target = interface.find("source"), interface.find("target")
    if target is not None and target.get("dev", "").startswith(("vnet", "tap")):
        interface.remove(target)  # libvirt names the tap
    if source is not None and source.get("bridge"):
        bridge = source.get("bridge", "")
        interface.set("type", "bridge")
        source.clear()
        source.set("bridge", bridge)


def _display(graphics: ET.Element) -> None:
    """libvirt makes the socket of a display that has one; where a network is named, it finds the address."""
    graphics.attrib.pop("socket", None)
    for listen in graphics.findall("listen"):
        listen.attrib.pop("socket", None)
        if listen.get("type") == "network":
            listen.attrib.pop("address", None)


def _character(device: ET.Element, path: str) -> None:
    """A pty, a channel's socket: libvirt opens new ones."""
    appends = {tag: _appends(device, tag) for tag in ("source", "log")}
    logs = device.find("log") is not None
    device.attrib.pop("tty", None)
    for tag in ("source", "log", "protocol"):
        for child in device.findall(tag):
            device.remove(child)
    for target in device.findall("target"):
        target.attrib.pop("state", None)
    if device.get("type") == "file":
        ET.SubElement(device, "source", {"path": f"{path}.log", **appends["source"]})
    if logs:
        ET.SubElement(device, "log", {"file": f"{path}-log.log", **appends["log"]})


def _appends(device: ET.Element, tag: str) -> dict[str, str]:
    child = device.find(tag)
    word = child.get("append") if child is not None else None
    return {"append": word} if word in ("on", "off") else {}
