# SPDX-License-Identifier: Apache-2.0
"""Domains of this host that have the name or the UUID of a VM that is to be protected to here."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import libvirt

from remusdb import safexml
from remusdb.core.probe import Namesake
from remusdb_agents.backup.standby.xml import ARGUMENT, COMMAND_LINE


def is_standby(tree: ET.Element, state: int) -> bool:
    """Whether a domain is the standby of an agent: it waits for a migration stream, which no other VM does for long."""
    words = [arg.get("value") for arg in tree.iterfind(f"./{COMMAND_LINE}/{ARGUMENT}")]
    return "-incoming" in words and state == libvirt.VIR_DOMAIN_PAUSED


def namesakes(connection: libvirt.virConnect, name: str, uuid: str, leaving: bool) -> list[Namesake]:
    """Ask libvirt. Blocks as it does: call under a deadline. `leaving`: the VM goes before a session."""
    found = {}
    for look, value in ((connection.lookupByName, name), (connection.lookupByUUIDString, uuid)):
        try:
            domain = look(value)
            same = (domain.name(), domain.UUIDString()) == (name, uuid)
            found[domain.UUIDString()] = _namesake(domain, leaving and same)
        except libvirt.libvirtError as exc:
            if value and exc.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
    return list(found.values())


def _namesake(domain: libvirt.virDomain, leaving: bool) -> Namesake:
    active, persistent = bool(domain.isActive()), bool(domain.isPersistent())
    return Namesake(
        name=domain.name(),
        uuid=domain.UUIDString(),
        active=active,
        persistent=persistent,
        autostart=persistent and not leaving and bool(domain.autostart()),
        ours=leaving or (active and is_standby(safexml.parse(domain.XMLDesc(0)), domain.state()[0])),
        leftovers=_leftovers(domain) if persistent else [],
    )


def _leftovers(domain: libvirt.virDomain) -> list[str]:
    """What `virsh undefine` refuses to leave behind unless it is told."""
    definition = safexml.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    os = definition.find("os")
    there = {
        "--managed-save": bool(domain.hasManagedSaveImage()),
        "--snapshots-metadata": domain.snapshotNum() > 0,
        "--checkpoints-metadata": bool(domain.listAllCheckpoints()),
        "--keep-nvram": os is not None and (os.get("firmware") == "efi" or os.find("nvram") is not None),
        "--keep-tpm": definition.find("./devices/tpm/backend[@type='emulator']") is not None,
    }
    return [option for option, needed in there.items() if needed]
