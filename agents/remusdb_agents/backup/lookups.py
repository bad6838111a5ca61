# SPDX-License-Identifier: Apache-2.0
"""What this host has of that which a VM's XML names: nothing is opened or changed, files are only stat'ed."""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from remusdb.core.probe import Bridge
from remusdb.names import file_stem
from remusdb.net.bridges import Bridges
from remusdb.preflight import needs
from remusdb_agents.backup.standby.judge import Here, allowed

HOOKS = (Path("/etc/libvirt/hooks/qemu"), Path("/etc/libvirt/hooks/qemu.d"))
OURS = "remusdb"


def paths(tree: ET.Element, here: Here) -> dict[str, str]:
    """Path -> what is wrong with it. Those that `needs` derives from the XML, no more than its limit, and only where
    VMs may name files: of others nothing is told."""
    return {one.path: _wrong(one) for one in needs.paths(tree)[: needs.MAX_PATHS] if allowed(one.path, here)}


def bridges(tree: ET.Element, names: Mapping[str, str]) -> dict[str, Bridge]:
    """The primary's bridge -> the one here. `names`: where it has another name. GateError."""
    sources = (source.get("bridge", "") for source in tree.iterfind("./devices/interface/source"))
    here = Bridges()
    return {name: here.bridge(names.get(name, name)) for name in dict.fromkeys(sources) if name}


def taken_links(tree: ET.Element) -> list[str]:
    """Links of this host that have the name of a tap which the VM brings along. GateError."""
    here = Bridges()
    return [name for name in needs.own_taps(tree) if here.there(name)]


def listens(tree: ET.Element) -> dict[str, str]:
    """Address -> why nothing can listen there. A socket is bound and closed; it never listens."""
    return {str(one): _bound(one) for one in needs.listens(tree)}


def other_hooks() -> bool:
    """Whether libvirt has hooks for QEMU that are not remusdb's."""
    single, folder = HOOKS
    found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return single.exists() or any(not name.startswith(OURS) for name in found)


def images(folder: Path, tree: ET.Element) -> dict[str, int]:
    """Disk target -> bytes that its image of an earlier session takes, in the VM's own folder below `folder`."""
    own = folder / file_stem(tree.findtext("name") or "-")
    targets = [target.get("dev", "") for target in tree.iterfind("./devices/disk/target")]
    found = {}
    for target in targets[: needs.MAX_PATHS]:
        path = own / f"{target}.raw"
        if "/" not in target and path.is_file():
            found[target] = path.stat().st_blocks * 512
    return found


def room(folder: Path) -> int:
    """Bytes that are free where replica disks go: in the nearest folder that is there already."""
    while not folder.is_dir():
        folder = folder.parent
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize


def _wrong(one: needs.Path) -> str:
    try:
        mode = os.stat(one.path).st_mode
    except (OSError, ValueError):
        return "is not there"
    if stat.S_ISDIR(mode) is not (one.kind == "folder"):
        return "is no folder" if one.kind == "folder" else "is a folder"
    if one.kind == "program" and not os.access(one.path, os.X_OK):
        return "cannot be executed"
    return ""


def _bound(one: needs.Listen) -> str:
    try:
        address = ipaddress.ip_address("127.0.0.1" if one.address == "localhost" else one.address)
    except ValueError:
        return "is a name, and is not looked up"
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as QEMU does
            sock.bind((str(address), one.port))
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""
