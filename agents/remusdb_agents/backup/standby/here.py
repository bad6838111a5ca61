# SPDX-License-Identifier: Apache-2.0
"""What this host has for the VM of another host: a HELLO's XML is judged by it before anything is changed for it.

Files are stat'ed only below folders that VMs may name, whatever the XML says; none is opened.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from remusdb import safexml
from remusdb.allow.problem import joined, vm_of
from remusdb.config import AgentConfig
from remusdb.core.identity import require_same_vm
from remusdb.core.messages import Hello
from remusdb.errors import CannotProtect
from remusdb.preflight import needs
from remusdb_agents.backup.standby.host_side import choose_emulator, strip
from remusdb_agents.backup.standby.judge import Here, allowed, files, judge

# Where packages tell which firmware there is (docs/interop/firmware.json of QEMU).
DESCRIPTORS = (Path("/usr/share/qemu/firmware"), Path("/etc/qemu/firmware"))
DESCRIPTOR_MAX_BYTES = 64 << 10
LIBVIRTS_PORTS = (16509, 16514, *range(49152, 49216))  # of libvirtd.conf, and qemu.conf's for migrations


def fitted(hello: Hello, config: AgentConfig) -> Hello:
    """The HELLO with the XML that may be started here, without what was the sender's host's. CannotProtect with all
    that is wrong with it, BadXml for what is no XML. Nothing is changed."""
    tree = safexml.parse(hello.domain_xml)
    vm = vm_of(tree)
    require_same_vm(hello.vm, hello.uuid, tree.findtext("name"), tree.findtext("uuid"))
    problems = judge(tree, look(tree, config), [disk.target for disk in hello.disks])
    if problems:
        told = "; ".join(dict.fromkeys(problem.what for problem in problems))
        raise CannotProtect(
            f"{config.agent.name} does not start such a VM: {told}",
            hint=joined(vm, (problem.hint for problem in problems)),
        )
    strip(tree)
    choose_emulator(tree, config.agent.emulator)
    return msgspec.structs.replace(hello, domain_xml=ET.tostring(tree, encoding="unicode"))


def look(tree: ET.Element, config: AgentConfig) -> Here:
    """What this host has of what the VM names."""
    folders = tuple(str(folder) for folder in config.agent.readable_dirs)
    firmware = frozenset(_firmware())
    real_folders = tuple(dict.fromkeys((*folders, *map(os.path.realpath, folders))))
    reserved = frozenset((config.agent.port, *LIBVIRTS_PORTS))
    here = Here(os.cpu_count() or 1, reserved, real_folders, firmware | frozenset(map(os.path.realpath, firmware)))
    named = [path for path in files(tree)[: needs.MAX_PATHS] if allowed(path, here)]
    return replace(here, real={path: _real(path) for path in named})


def require_free_taps(xml: str) -> None:
    """CannotProtect where the VM brings the name of a tap along that is taken here: it would be put on that one."""
    tree = safexml.parse(xml)
    links = {name for _, name in socket.if_nameindex()}
    if taken := [name for name in needs.own_taps(tree) if name in links]:
        raise CannotProtect(
            f"the VM's tap would be called {', '.join(taken)}, as a link of the backup host is already",
            hint=f"virsh edit {vm_of(tree)}: remove <target> from the interface; in effect from the VM's next start",
        )


def _real(path: str) -> str:
    """The file behind the name; empty for none, and for what is no plain file."""
    with contextlib.suppress(OSError, ValueError):
        real = os.path.realpath(path, strict=True)
        if stat.S_ISREG(os.stat(real).st_mode):
            return real
    return ""


def _firmware() -> Iterator[str]:
    """Files of the firmware that this host's packages describe, and the templates of its variables."""
    for folder in DESCRIPTORS:
        for path in sorted(folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
                with path.open("rb") as file:
                    mapping = json.loads(file.read(DESCRIPTOR_MAX_BYTES)).get("mapping", {})
                for part in (mapping, mapping.get("executable", {}), mapping.get("nvram-template", {})):
                    if isinstance(name := part.get("filename"), str) and name.startswith("/"):
                        yield name
