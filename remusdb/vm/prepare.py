# SPDX-License-Identifier: Apache-2.0
"""What makes protection cheaper, written into a VM's persistent definition: XML in, XML and words out."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from uuid import UUID

from remusdb import safexml
from remusdb.errors import VmError
from remusdb.preflight import apparmor

QEMU_NS = "http://libvirt.org/schemas/domain/qemu/1.0"
CHARDEV = "remusdb-qmp"
# libvirt's own folder for QEMU: QEMU's user may write there, and it is there before any daemon of ours has started.
# A definition that names a folder which is not there, or not writable, is a VM that does not start.
SOCKET_FOLDER = Path("/var/lib/libvirt/qemu")

ET.register_namespace("qemu", QEMU_NS)


def qmp_socket(uuid: str, folder: Path = SOCKET_FOLDER) -> Path:
    """Where the VM's private QMP socket is; VmError for what is no UUID.

    Not by its name: with a long one the path would pass the 107 bytes that a socket's may have.
    """
    try:
        return folder / f"remusdb-{UUID(uuid)}.sock"
    except ValueError as exc:
        raise VmError(f"{uuid!r:.80} is no VM's UUID") from exc


def prepare(xml: str, uuid: str, folder: Path = SOCKET_FOLDER) -> tuple[str, list[str]]:
    """The definition with all that helps, and what was changed in it (nothing, if it has all of it)."""
    root = safexml.parse(xml)
    socket = qmp_socket(uuid, folder)
    words = monitor_words(socket)
    line = root.find(f"{{{QEMU_NS}}}commandline")
    present = [arg.get("value", "") for arg in line] if line is not None else []
    if all(word in present for word in words):
        return xml, []
    if line is None:
        line = ET.SubElement(root, f"{{{QEMU_NS}}}commandline")
    remove_monitor(line)
    for word in words:
        ET.SubElement(line, f"{{{QEMU_NS}}}arg", {"value": word})
    return ET.tostring(root, encoding="unicode"), [f"a private QMP socket at {socket}: 0.25 ms a call instead of 2.5"]


def monitor_words(socket: Path) -> list[str]:
    """QEMU's options for a private QMP socket."""
    chardev = f"socket,id={CHARDEV},path={_escaped(socket)},server=on,wait=off"
    return ["-chardev", chardev, "-mon", f"chardev={CHARDEV},mode=control"]


def confined_without_rule(capabilities: str) -> bool:
    """Whether AppArmor would not let QEMU make the socket: a VM that has one would not start. Looks at this host."""
    found = apparmor.look(capabilities)
    return found.confined and not found.monitor


def remove_monitor(line: ET.Element) -> None:
    """Take the options of a private QMP socket, whatever its path, out of a `qemu:commandline`."""
    arguments = list(line)
    for option, value in pairwise(arguments):
        if option.get("value") in ("-chardev", "-mon") and CHARDEV in value.get("value", ""):
            line.remove(option)
            line.remove(value)


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")  # QEMU's way of writing a comma inside an option
