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

from remusdb.vm.prepare import CHARDEV, QEMU_NS, monitor_words, remove_monitor

COMMAND_LINE, ARGUMENT = f"{{{QEMU_NS}}}commandline", f"{{{QEMU_NS}}}arg"

# Libvirt writes these into live XML; on another host it must choose them anew, or they name the primary's files.
RUNTIME_CHILDREN = ("seclabel", "resource", "genid")
# Where libvirt puts the socket of a channel that names none: below /run since 9.7, /var/lib before, there in `target`.
LIBVIRTS_CHANNEL = re.compile(r"/libvirt/qemu/channel/")
DISK_RUNTIME = ("mirror", "backingStore", "backenddomain", "snapshot")


def standby_xml(live: str, images: Mapping[str, Path], bridges: Mapping[str, str], monitor: Path | None) -> str:
    """The standby's XML: disk targets on the raw `images`, bridges mapped, QEMU waiting for a migration stream.

    `monitor`: where its private QMP socket is to be; None where QEMU may not have one here.
    """
    root = _portable(live, images, bridges, monitor is not None)
    line = root.find(COMMAND_LINE)
    if line is None:
        line = ET.SubElement(root, COMMAND_LINE)
    words = ["-incoming", "defer"]
    if monitor is not None and not _has_monitor(line):
        words += monitor_words(monitor)
    for word in words:
        ET.SubElement(line, ARGUMENT, {"value": word})
    return ET.tostring(root, encoding="unicode")


def survivor_xml(live: str, images: Mapping[str, Path], bridges: Mapping[str, str], keep_monitor: bool) -> str:
    """The definition under which the promoted VM starts next time: the primary's, on this host's files.

    `keep_monitor`: whether the private QMP socket of a prepared VM may stay.
    """
    return ET.tostring(_portable(live, images, bridges, keep_monitor), encoding="unicode")


def _portable(live: str, images: Mapping[str, Path], bridges: Mapping[str, str], keep_monitor: bool) -> ET.Element:
    root = ET.fromstring(live)
    root.attrib.pop("id", None)
    _command_line(root, keep_monitor)
    for name in RUNTIME_CHILDREN:
        for child in root.findall(name):
            root.remove(child)
    for disk in root.iterfind("./devices/disk"):
        _disk(disk, images)
    for interface in root.iterfind("./devices/interface"):
        _interface(interface, bridges)
    for console in (*root.iterfind("./devices/serial"), *root.iterfind("./devices/console")):
        _console(console)
    for channel in root.iterfind("./devices/channel"):
        _channel(channel)
    return root


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


def _disk(disk: ET.Element, images: Mapping[str, Path]) -> None:
    for name in DISK_RUNTIME:
        for child in disk.findall(name):
            disk.remove(child)
    target, source, driver = disk.find("target"), disk.find("source"), disk.find("driver")
    image = images.get(target.get("dev", "")) if target is not None else None
    if image is None or source is None:
        return
    disk.set("type", "file")
    source.attrib.clear()
    for child in list(source):
        source.remove(child)
    source.set("file", str(image))
    if driver is not None:
        driver.set("type", "raw")
        for name in ("discard_no_unref", "metadata_cache"):
            driver.attrib.pop(name, None)


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
