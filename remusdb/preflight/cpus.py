# SPDX-License-Identifier: Apache-2.0
"""Whether a host can build a VM's CPU, by libvirt's word. All of it blocks as libvirt does: call under a deadline."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import libvirt

from remusdb import safexml

PASSED = ("host-passthrough", "maximum")  # the guest has what the host has: the hosts are compared instead
IDENTICAL, SUPERSET = "identical", "superset"
_MISSING = re.compile(r"required features: ([\w., -]+)")


def passed_through(tree: ET.Element) -> bool:
    """Whether the guest sees the host's own CPU."""
    cpu = tree.find("cpu")
    return cpu is not None and cpu.get("mode") in PASSED and tree.get("type") == "kvm"


def compare(connection: libvirt.virConnect, tree: ET.Element) -> str:
    """Why this host cannot build the CPU of a domain's live XML, empty if it can. libvirtError for anything else.

    Asked of libvirt's default QEMU, never of a program that the XML names: libvirt would start that.
    """
    cpu = tree.find("cpu")
    if cpu is None or cpu.get("mode") in PASSED:
        return ""
    kind = "kvm" if tree.get("type") == "kvm" else "qemu"
    flags = libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
    try:
        connection.compareHypervisorCPU(None, "x86_64", None, kind, ET.tostring(cpu, encoding="unicode"), flags)
    except libvirt.libvirtError as exc:
        return _incompatible(exc)
    return ""


def compare_host(connection: libvirt.virConnect, other: str) -> str:
    """What this host's CPU is to the `<cpu>` of another host's capabilities: IDENTICAL, SUPERSET, or why it is less."""
    flags = libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
    try:
        found = connection.compareCPU(other, flags)
    except libvirt.libvirtError as exc:
        return _incompatible(exc)
    return IDENTICAL if found == libvirt.VIR_CPU_COMPARE_IDENTICAL else SUPERSET


def host_cpu(capabilities: str) -> str:
    """The `<cpu>` of libvirt's capabilities, empty if it has none."""
    cpu = safexml.parse_host(capabilities, "libvirt's capabilities").find("./host/cpu")
    return ET.tostring(cpu, encoding="unicode") if cpu is not None else ""


def missing(reason: str) -> frozenset[str]:
    """The features that libvirt's reason names."""
    found = _MISSING.search(reason)
    return frozenset(feature.strip() for feature in found[1].split(",")) if found else frozenset()


def _incompatible(exc: libvirt.libvirtError) -> str:
    if exc.get_error_code() != libvirt.VIR_ERR_CPU_INCOMPATIBLE:
        raise exc
    return str(exc.get_error_message() or exc)
