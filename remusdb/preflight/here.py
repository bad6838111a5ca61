# SPDX-License-Identifier: Apache-2.0
"""What this host has for a VM that runs on it, where the preflight compares it with the backup."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass, field

import libvirt

from remusdb.arbiter.arbiter import Arbiter
from remusdb.core.probe import Bridge
from remusdb.net import offloads
from remusdb.net.bridges import Bridges
from remusdb.preflight import cpus
from remusdb.preflight.looks import look_at
from remusdb.vm.domain import Nic, nics_of

LOOKS_S = 8.0


@dataclass(frozen=True)
class Here:
    """This host, for comparison. None, or a name that is missing: not known, and `errors` says why."""

    host: str = ""
    heartbeat_ms: int = 0
    arbiter: str | None = None  # its cluster; empty: none is configured
    bridges: dict[str, Bridge] = field(default_factory=dict)
    tap_mtu: dict[str, int] = field(default_factory=dict)
    tap_vlans: dict[str, dict[int, bool]] = field(default_factory=dict)  # see Bridges.vlans
    tun_offloads: int | None = None
    vhost: int | None = None
    cpu: str | None = None  # why this host could not build the VM's CPU, empty if it could
    disks: dict[str, int] = field(default_factory=dict)  # target -> bytes that it takes
    errors: dict[str, str] = field(default_factory=dict)


def gather(
    connection: libvirt.virConnect, tree: ET.Element, host: str, heartbeat_ms: int, arbiter: Arbiter | None
) -> Here:
    """Look at this host, for the VM of this live XML. Nothing raises: what fails is told in `errors`."""
    nics = nics_of(tree)
    found, errors = look_at(
        {
            "arbiter": lambda: arbiter.cluster() if arbiter else "",
            "bridges": lambda: _network(nics),
            "tun_offloads": offloads.tun_offloads,
            "vhost": offloads.vhost_features,
            "cpu": lambda: cpus.compare(connection, tree),
            "disks": lambda: _disks(connection, tree),
        },
        LOOKS_S,
    )
    bridges, tap_mtu, tap_vlans = found.pop("bridges", ({}, {}, {}))
    return Here(host, heartbeat_ms, bridges=bridges, tap_mtu=tap_mtu, tap_vlans=tap_vlans, errors=errors, **found)


def _network(nics: list[Nic]) -> tuple[dict[str, Bridge], dict[str, int], dict[str, dict[int, bool]]]:
    links = Bridges()
    return (
        {nic.bridge: links.bridge(nic.bridge) for nic in nics},
        {nic.tap: links.mtu(nic.tap) for nic in nics},
        {nic.tap: links.vlans(nic.tap) for nic in nics},
    )


def _disks(connection: libvirt.virConnect, tree: ET.Element) -> dict[str, int]:
    domain = connection.lookupByName(tree.findtext("name") or "")
    disks = [disk for disk in tree.iterfind("./devices/disk") if disk.get("device", "disk") == "disk"]
    targets = [target.get("dev", "") for disk in disks if (target := disk.find("target")) is not None]
    return {target: int(domain.blockInfo(target)[1]) for target in targets if target}
