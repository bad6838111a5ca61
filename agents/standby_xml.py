# SPDX-License-Identifier: Apache-2.0
"""From the primary's live domain XML to the standby's: the same machine, other files, incoming.

Pure. The guest must find the very same devices at the very same addresses, so nothing is left out that QEMU
would give an address to; only what names things of the primary host is replaced.

A VM that was promoted once still has in its live XML what made it a standby: `-incoming` on QEMU's command line and, if
it needed one, a private monitor *behind* it. So whatever stands from `-incoming` on is ours and is left out; a private
monitor before it is the operator's (`remusdb prepare`) and stays.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from remusdb import safexml
from remusdb.vm.prepare import CHARDEV, QEMU_NS, monitor_words, remove_monitor
from remusdb_agents.devices import Device

Images = Mapping[str, Path | Device]  # by the disks' targets

COMMAND_LINE, ARGUMENT = f"{{{QEMU_NS}}}commandline", f"{{{QEMU_NS}}}arg"

# Libvirt writes these into live XML; on another host it must choose them anew, or they name the primary's files.
RUNTIME_CHILDREN = ("resource",)
# Where libvirt puts the socket of a channel that names none: below /run since 9.7, /var/lib before, there in `target`.
LIBVIRTS_CHANNEL = re.compile(r"/libvirt/qemu/channel/")
DISK_RUNTIME = ("mirror", "backingStore", "backenddomain", "snapshot")
QCOW2_ALONE = ("discard_no_unref", "metadata_cache")  # of a <driver>; the replica is raw


def standby_xml(
    live: str, images: Images, bridges: Mapping[str, str], monitor: Path | None, nvram: Path | None = None
) -> str:
    """The standby's XML: disks on the raw `images`, bridges mapped, QEMU waiting for a migration stream.

    `monitor`: where its private QMP socket is to be; None where QEMU may not have one here. `nvram`: a raw file for the
    variables of a UEFI guest.
    """
    root = _portable(live, images, bridges, monitor is not None, nvram)
    line = root.find(COMMAND_LINE)
    if line is None:
        line = ET.SubElement(root, COMMAND_LINE)
    words = ["-incoming", "defer"]
    if monitor is not None and not _has_monitor(line):
        words += monitor_words(monitor)
    for word in words:
        ET.SubElement(line, ARGUMENT, {"value": word})
    return ET.tostring(root, encoding="unicode")


def survivor_xml(
    live: str, images: Images, bridges: Mapping[str, str], keep_monitor: bool, nvram: Path | None = None
) -> str:
    """The definition under which the promoted VM starts next time: the primary's, on this host's files.

    `keep_monitor`: whether the private QMP socket of a prepared VM may stay.
    """
    return ET.tostring(_portable(live, images, bridges, keep_monitor, nvram), encoding="unicode")


def _portable(
    live: str, images: Images, bridges: Mapping[str, str], keep_monitor: bool, nvram: Path | None
) -> ET.Element:
    root = safexml.parse(live)
    _variables(root, nvram)
    root.attrib.pop("id", None)
    _command_line(root, keep_monitor)
    for name in RUNTIME_CHILDREN:
        for child in root.findall(name):
            root.remove(child)
    for label in root.findall("seclabel"):
        _label(root, label)
    for disk in root.iterfind("./devices/disk"):
        _disk(disk, images)
    for interface in root.iterfind("./devices/interface"):
        _interface(interface, bridges)
    for console in (*root.iterfind("./devices/serial"), *root.iterfind("./devices/console")):
        _console(console)
    for channel in root.iterfind("./devices/channel"):
        _channel(channel)
    return root


def _variables(root: ET.Element, nvram: Path | None) -> None:
    """The template stays: from it libvirt makes the variables anew, if the file is gone one day."""
    found = root.find("./os/nvram")
    if found is None or nvram is None:
        return
    kept = {name: found.get(name, "") for name in ("template", "templateFormat") if found.get(name)}
    found.clear()
    found.attrib.update(kept, format="raw")
    found.text = str(nvram)


def _command_line(root: ET.Element, keep_monitor: bool) -> None:
    line = root.find(COMMAND_LINE)
    if line is None:
        return
    arguments = line.findall(ARGUMENT)
    words = [argument.get("value") for argument in arguments]
    if "-incoming" in words:
        for argument in arguments[words.index("-incoming") :]:
            line.remove(argument)
    if not keep_monitor:
        remove_monitor(line)
    if not len(line):
        root.remove(line)


def _has_monitor(line: ET.Element) -> bool:
    return any(CHARDEV in argument.get("value", "") for argument in line)


def _disk(disk: ET.Element, images: Images) -> None:
    for name in DISK_RUNTIME:
        for child in disk.findall(name):
            disk.remove(child)
    target, source, driver = disk.find("target"), disk.find("source"), disk.find("driver")
    image = images.get(target.get("dev", "")) if target is not None else None
    if source is not None and not source.attrib.keys() - {"index", "startupPolicy"} and not len(source):
        disk.remove(source)  # an empty drive
        return
    if image is None or source is None:
        return
    _source(disk, source, image)
    if driver is not None:
        driver.set("type", "raw")
        for name in QCOW2_ALONE:
            driver.attrib.pop(name, None)
            for child in driver.findall(name):
                driver.remove(child)


def _source(disk: ET.Element, source: ET.Element, image: Path | Device) -> None:
    source.clear()
    if not isinstance(image, Device):
        disk.set("type", "file")
        source.set("file", str(image))
        return
    disk.set("type", "block")
    source.set("dev", str(image.path))
    if image.device_bytes > image.size:  # the guest's disk is not as large
        slices = ET.SubElement(source, "slices")
        ET.SubElement(slices, "slice", {"type": "storage", "offset": "0", "size": str(image.size)})


def _label(root: ET.Element, label: ET.Element) -> None:
    """What the operator asked for stays; what libvirt chose for this run of the VM it must choose anew."""
    for child in label.findall("imagelabel"):
        label.remove(child)
    if label.get("type", "dynamic") == "dynamic":
        for child in label.findall("label"):
            label.remove(child)
        if not len(label) and label.get("relabel", "yes") == "yes":
            root.remove(label)


def _interface(interface: ET.Element, bridges: Mapping[str, str]) -> None:
    source, target = interface.find("source"), interface.find("target")
    if target is not None and target.get("dev", "").startswith(("vnet", "tap")):
        interface.remove(target)  # libvirt names the tap
    if source is not None and source.get("bridge"):
        bridge = source.get("bridge", "")
        interface.set("type", "bridge")
        source.attrib.clear()
        source.set("bridge", bridges.get(bridge, bridge))


def _console(console: ET.Element) -> None:
    """A pty of the primary means nothing here: libvirt opens a new one."""
    source = console.find("source")
    console.attrib.pop("tty", None)
    if console.get("type") == "pty" and source is not None:
        console.remove(source)


def _channel(channel: ET.Element) -> None:
    """Libvirt's own socket paths are made anew; the guest's view is the target, which stays."""
    source, target = channel.find("source"), channel.find("target")
    if source is not None and LIBVIRTS_CHANNEL.search(source.get("path", "")):
        channel.remove(source)
    if target is not None:
        target.attrib.pop("state", None)
