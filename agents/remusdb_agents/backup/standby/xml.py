# SPDX-License-Identifier: Apache-2.0
"""From the primary's live domain XML to the standby's: the same machine, other files, incoming.

Pure. The guest must find the very same devices at the very same addresses, so nothing is left out that QEMU
would give an address to; only what names things of the primary host is (host_side.py), and what this host has for it
is put in. Whether the sender may have such a VM here at all was judged before (judge.py).

A VM that was promoted once still has in its live XML what made it a standby: `-incoming` on QEMU's command line and, if
it needed one, a private monitor *behind* it. So whatever stands from `-incoming` on is ours and is left out; a private
monitor before it is the operator's (`remusdb prepare`) and stays.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from remusdb import safexml
from remusdb.allow.problem import joined, target_of, vm_of
from remusdb.errors import CannotProtect
from remusdb.vm.prepare import CHARDEV, QEMU_NS, monitor_words
from remusdb_agents.backup.standby.devices import Device
from remusdb_agents.backup.standby.host_side import strip
from remusdb_agents.backup.standby.own_words import command_line

Images = Mapping[str, Path | Device]  # by the disks' targets

COMMAND_LINE, ARGUMENT = f"{{{QEMU_NS}}}commandline", f"{{{QEMU_NS}}}arg"


def standby_xml(
    live: str, images: Images, bridges: Mapping[str, str], monitor: Path | None, nvram: Path | None = None
) -> str:
    """The standby's XML: disks on the raw `images`, bridges mapped, QEMU waiting for a migration stream.

    `monitor`: where its private QMP socket is to be; None where QEMU may not have one here. `nvram`: a raw file for the
    variables of a UEFI guest. CannotProtect for a disk without an image, BadXml for what is no document.
    """
    root, prepared = _portable(live, images, bridges, nvram)
    waiting, words = ["-incoming", "defer"], monitor_words(monitor) if monitor is not None else []
    _command_line(root, [*words, *waiting] if prepared else [*waiting, *words])
    return ET.tostring(root, encoding="unicode")


def survivor_xml(
    live: str, images: Images, bridges: Mapping[str, str], monitor: Path | None, nvram: Path | None = None
) -> str:
    """The definition under which the promoted VM starts next time: the primary's, on this host's files.

    `monitor`: where the private QMP socket of a prepared VM is to be, as above.
    """
    root, prepared = _portable(live, images, bridges, nvram)
    if prepared and monitor is not None:
        _command_line(root, monitor_words(monitor))
    return ET.tostring(root, encoding="unicode")


def _portable(live: str, images: Images, bridges: Mapping[str, str], nvram: Path | None) -> tuple[ET.Element, bool]:
    """The domain on this host's files, without a command line; whether it was prepared."""
    root = safexml.parse(live)
    strip(root)
    variables = root.find("./os/nvram")
    if variables is not None and nvram is not None:
        variables.set("format", "raw")
        variables.text = str(nvram)
    for disk in root.iterfind("./devices/disk"):
        if disk.get("device", "disk") == "disk":
            _disk(disk, images)
    for source in root.iterfind("./devices/interface/source"):
        bridge = source.get("bridge", "")
        source.set("bridge", bridges.get(bridge, bridge))
    return root, _take_command_line(root)


def _take_command_line(root: ET.Element) -> bool:
    """Take QEMU's words out; whether a private monitor was among the operator's."""
    words: list[str] = []
    for line in root.findall(COMMAND_LINE):
        if problems := list(command_line(line, vm_of(root))):
            told = "; ".join(problem.what for problem in problems)
            raise CannotProtect(told, hint=joined(vm_of(root), (problem.hint for problem in problems)))
        words += [argument.get("value", "") for argument in line.iterfind(ARGUMENT)]
        root.remove(line)
    own = words[: words.index("-incoming")] if "-incoming" in words else words
    return any(CHARDEV in word for word in own)


def _command_line(root: ET.Element, words: list[str]) -> None:
    line = ET.SubElement(root, COMMAND_LINE)
    for word in words:
        ET.SubElement(line, ARGUMENT, {"value": word})


def _disk(disk: ET.Element, images: Images) -> None:
    target, driver, source = target_of(disk), disk.find("driver"), disk.find("source")
    image = images.get(target)
    if image is None:
        raise CannotProtect(f"disk {target} of the VM is none of its session's", hint="protect the VM again")
    if driver is not None:
        driver.set("type", "raw")
    _source(disk, source if source is not None else ET.SubElement(disk, "source"), image)


def _source(disk: ET.Element, source: ET.Element, image: Path | Device) -> None:
    if not isinstance(image, Device):
        disk.set("type", "file")
        source.set("file", str(image))
        return
    disk.set("type", "block")
    source.set("dev", str(image.path))
    if image.device_bytes > image.size:  # the guest's disk is not as large
        slices = ET.SubElement(source, "slices")
        ET.SubElement(slices, "slice", {"type": "storage", "offset": "0", "size": str(image.size)})
