# SPDX-License-Identifier: Apache-2.0
"""What the preflight decides over, gathered from libvirt, QEMU and this host. Nothing is changed by looking."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt
import psutil

from remusdb import safexml
from remusdb.capture.clock_search import clock_named
from remusdb.capture.trying import try_tracking
from remusdb.core.probe import Answer, Confinement
from remusdb.errors import VmError
from remusdb.net.factory import plug_works
from remusdb.preflight import apparmor
from remusdb.vm.domain import pid_of
from remusdb.vm.monitor import LibvirtMonitor
from remusdb.vm.states import state_of

QEMU_CONF = Path("/etc/libvirt/qemu.conf")
PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
TUN = Path("/dev/net/tun")
MEMINFO = Path("/proc/meminfo")
NBDKIT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class VmInventory:
    """One VM as libvirt and its QEMU describe it. `xml` is the live XML of a running VM."""

    name: str
    xml: str
    running: bool
    state: str = "running"
    paused: str = ""  # why, where it is paused
    canonical: str = ""  # what its machine type stands for, as this host's QEMU has it; empty where that is not known
    qemu_version: tuple[int, int, int] = (0, 0, 0)
    migration_blockers: tuple[str, ...] = ()
    block_jobs: tuple[str, ...] = ()  # disk targets that have a job now
    snapshots: int = 0
    clock_named: bool = True  # whether the running QEMU's program says where it keeps the guest's clock


@dataclass(frozen=True)
class HostInventory:
    """This host. An `*_error` is empty where all is well."""

    machine: str = "x86_64"
    kernel: str = ""
    tracking_error: str = ""
    ptrace_scope: int = 0
    nbdkit_error: str = ""
    tun: bool = True
    plug: bool = False
    lock_manager: str = ""
    cpus: int = 2
    memory_available_bytes: int = 1 << 40
    huge_page_bytes: int = 2 << 20  # what <hugepages/> means here
    confinement: Confinement = field(default_factory=lambda: Confinement(confined=False))


@dataclass(frozen=True)
class PeerInventory:
    """The backup, where `--to` names one."""

    name: str
    error: str = ""  # why its agent does not answer
    refused: str = ""  # why its agent, which answers, does not want this host or this VM
    hint: str = ""  # of either
    version: str = ""
    qemu_version: tuple[int, int, int] = (0, 0, 0)
    libvirt_version: tuple[int, int, int] = (0, 0, 0)
    machines: tuple[str, ...] = ()
    answer: Answer | None = None  # what this VM would find there
    datagrams: bool | None = None  # whether a heartbeat of its own comes through; None: its agent offers to hear none


@dataclass(frozen=True)
class Inventory:
    """All of it, with what the configuration wants for this VM."""

    vm: VmInventory
    host: HostInventory
    gate: str = "auto"
    encoding: str = "delta"
    run_dir: Path = Path("/run/remusdb")
    peer: PeerInventory | None = None


def gather_vm(connection: libvirt.virConnect, name: str) -> VmInventory:
    """Ask libvirt and QEMU. Blocks as libvirt does: call under a deadline."""
    try:
        domain = connection.lookupByName(name)
        state, paused = state_of(domain)
        running = bool(domain.isActive())
        xml = domain.XMLDesc(0)
        inventory: dict[str, Any] = {}
        if running:
            inventory["qemu_version"] = _qemu_version(domain)
            inventory["migration_blockers"] = tuple(_ask(domain, "query-migrate").get("blocked-reasons", ()))
            inventory["clock_named"] = clock_named(pid_of(name))
            inventory["block_jobs"] = tuple(target for target in _targets(xml) if domain.blockJobInfo(target))
        snapshots = domain.snapshotNum()
    except libvirt.libvirtError as exc:
        hint = "see: virsh list --all" if exc.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN else ""
        raise VmError(f"VM {name}: {exc.get_error_message() or exc}", hint=hint) from exc
    inventory["canonical"] = _canonical_machine(connection, safexml.parse(xml))
    return VmInventory(name, xml, running, state=state, paused=paused, snapshots=snapshots, **inventory)


def gather_host(capabilities: str, *, try_plug: bool) -> HostInventory:
    """Look at this host; `capabilities` are its libvirt's. With `try_plug` an IFB device is made and removed again."""
    scope = 0
    with contextlib.suppress(OSError, ValueError):
        scope = int(PTRACE_SCOPE.read_text())
    return HostInventory(
        machine=os.uname().machine,
        kernel=os.uname().release,
        tracking_error=try_tracking(),
        ptrace_scope=scope,
        nbdkit_error=_nbdkit_error(),
        tun=TUN.exists(),
        plug=try_plug and plug_works(),
        lock_manager=_lock_manager(QEMU_CONF),
        cpus=os.cpu_count() or 1,
        memory_available_bytes=psutil.virtual_memory().available,
        huge_page_bytes=_huge_page_bytes(MEMINFO),
        confinement=apparmor.look(capabilities),
    )


def _ask(domain: libvirt.virDomain, command: str) -> dict[str, Any]:
    found = LibvirtMonitor(domain).execute(command, {})
    return found if isinstance(found, dict) else {}


def _qemu_version(domain: libvirt.virDomain) -> tuple[int, int, int]:
    """Of the running QEMU, which may be older than the installed one."""
    version = _ask(domain, "query-version").get("qemu")
    parts = [version.get(part) if isinstance(version, dict) else 0 for part in ("major", "minor", "micro")]
    major, minor, micro = (part if isinstance(part, int) else 0 for part in parts)
    return major, minor, micro


def _targets(xml: str) -> list[str]:
    return re.findall(r"<target dev='([^']+)' bus=", xml)


def _canonical_machine(connection: libvirt.virConnect, tree: ET.Element) -> str:
    """QEMU's own name for the VM's machine type, which differs from an alias's. Empty where QEMU does not have it."""
    kind, emulator = tree.find("./os/type"), tree.findtext("./devices/emulator")
    if kind is None:
        return ""
    try:
        asked = (emulator, kind.get("arch"), kind.get("machine"), tree.get("type"))
        return safexml.parse_host(connection.getDomainCapabilities(*asked), "libvirt's domain capabilities").findtext(
            "machine", ""
        )
    except libvirt.libvirtError:
        return ""


def _huge_page_bytes(meminfo: Path) -> int:
    """The size of this host's default huge page; 0 where it has none."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^Hugepagesize:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE):
            return int(found[1]) << 10
    return 0


def _nbdkit_error() -> str:
    path = shutil.which("nbdkit")
    if path is None:
        return "nbdkit is not installed"
    try:
        subprocess.run([path, "python", "--dump-plugin"], capture_output=True, check=True, timeout=NBDKIT_TIMEOUT_S)
    except subprocess.CalledProcessError:
        return "nbdkit has no Python plugin"
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"nbdkit cannot be run: {exc}"
    return ""


def _lock_manager(path: Path) -> str:
    """libvirt's lock manager, empty if none is configured (the default) or the file cannot be read."""
    try:
        found = re.search(r'^\s*lock_manager\s*=\s*"([^"]*)"', path.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found and found[1] != "nop" else ""
