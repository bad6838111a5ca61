# SPDX-License-Identifier: Apache-2.0
"""Whether a VM can be protected from this host: decisions over a gathered inventory, without I/O."""

from __future__ import annotations

import shlex
import xml.etree.ElementTree as ET

from remusdb import safexml
from remusdb.errors import CannotProtect
from remusdb.preflight import apparmor
from remusdb.preflight import clock as preflight_clock
from remusdb.preflight import devices as preflight_devices
from remusdb.preflight.checks import Check, advice, required
from remusdb.preflight.gather import HostInventory, Inventory, PeerInventory, VmInventory
from remusdb.vm.prepare import CHARDEV, QEMU_NS

PEER = "peer"  # the check of whether its agent answers at all
MIN_QEMU = (8, 2, 0)  # the first whose block jobs say `actively-synced`, without which no epoch can be closed
MEMORY_UNITS = {"b": 1, "bytes": 1, "KiB": 1 << 10, "k": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def decide(inventory: Inventory) -> list[Check]:
    """Every check, in the order in which someone would mend them."""
    tree = safexml.parse(inventory.vm.xml)
    checks = [
        *_host(inventory.host),
        *_gate(inventory),
        *_qemu(inventory.vm),
        *preflight_devices.decide(inventory, tree),
        *_capacity(inventory, tree),
        *_confinement(tree, inventory.host),
        *preflight_clock.decide(inventory, tree),
    ]
    return checks + (_peer(inventory.peer, inventory.vm) if inventory.peer else [])


def require(vm: str, checks: list[Check]) -> None:
    """CannotProtect with every required check that failed."""
    failed = [check for check in checks if check.level == "required" and not check.ok]
    if failed:
        told = "; ".join(f"{check.name}: {check.detail}" for check in failed)
        hints = "; ".join(dict.fromkeys(check.hint for check in failed if check.hint))
        raise CannotProtect(f"VM {vm} cannot be protected: {told}", hint=hints)


def _host(host: HostInventory) -> list[Check]:
    x86 = [] if host.machine == "x86_64" else [f"this host is {host.machine}"]
    tracking = [f"Linux {host.kernel}: {host.tracking_error}"] if host.tracking_error else []
    ptrace = ["kernel.yama.ptrace_scope is 3: not even root may trace QEMU"] if host.ptrace_scope >= 3 else []
    return [
        required("architecture", x86, host.machine, "the capture is written for x86-64"),
        required(
            "kernel",
            tracking,
            f"Linux {host.kernel} tracks written pages",
            "boot Linux 6.7 or newer, with CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP",
        ),
        required(
            "ptrace", ptrace, "QEMU may be traced", "set kernel.yama.ptrace_scope to 2 or less; it takes a reboot"
        ),
        required(
            "nbdkit",
            [host.nbdkit_error] if host.nbdkit_error else [],
            "with its Python plugin",
            "Debian: apt install nbdkit nbdkit-plugin-python; Fedora: dnf install nbdkit nbdkit-python-plugin",
        ),
    ]


def _gate(inventory: Inventory) -> list[Check]:
    host, wanted = inventory.host, inventory.gate
    problems = []
    if wanted == "plug" and not host.plug:
        problems = ["protection.gate is plug, and the kernel has no sch_plug or no IFB"]
    elif not host.tun and (wanted == "tap" or not host.plug):
        problems = ["/dev/net/tun is missing"]
    kind = "plug" if host.plug and wanted != "tap" else "tap"
    return [
        required("gate", problems, f"{kind} gate", "modprobe tun (or sch_plug and ifb), or another protection.gate")
    ]


def _qemu(vm: VmInventory) -> list[Check]:
    version = ".".join(str(part) for part in vm.qemu_version)
    old = [f"QEMU {version} runs the VM"] if vm.running and vm.qemu_version < MIN_QEMU else []
    return [
        required(
            "running",
            [] if vm.state == "running" and vm.running else [f"it is {vm.state} {vm.paused}".rstrip()],
            "it is running",
            _how_to_run(vm),
        ),
        required(
            "qemu",
            old,
            f"QEMU {version}" if vm.running else "not known while it is off",
            "8.2 is the oldest that works; the VM uses it from its next start",
        ),
        required(
            "blockers",
            [f"QEMU cannot save it: {reason}" for reason in vm.migration_blockers],
            "QEMU can save all its devices",
            "remove the device from the VM's definition, or the CPU feature (invtsc)",
        ),
    ]


def _how_to_run(vm: VmInventory) -> str:
    name = shlex.quote(vm.name)
    resume = f"virsh resume {name}"
    if "I/O error" in vm.paused:
        return f"virsh domblkerror {name} names the disk; repair what is behind it (is it full?), then: {resume}"
    return {
        "paused": resume,
        "suspended by the guest": f"virsh dompmwakeup {name}",
        "crashed": f"virsh destroy {name}, then: virsh start {name}",
        "shutting down": f"once it is off: virsh start {name}",
    }.get(vm.state, f"virsh start {name}")


def _capacity(inventory: Inventory, tree: ET.Element) -> list[Check]:
    need = _memory_bytes(tree) if inventory.encoding == "delta" else 0
    have = inventory.host.memory_available_bytes
    short = f"{have >> 20} MiB are free; the delta encoding keeps a copy of the VM's {need >> 20} MiB"
    mode = (cpu.get("mode") or "custom") if (cpu := tree.find("cpu")) is not None else "custom"
    passed = f"CPU mode is {mode}" if mode in ("host-passthrough", "maximum") and tree.get("type") == "kvm" else ""
    return [
        advice(
            "host memory",
            short if have < need else "",
            f"{have >> 20} MiB are free",
            'more memory, or encoding = "full"',
        ),
        advice(
            "cpus",
            "one CPU: encoding runs where the VM runs" if inventory.host.cpus < 2 else "",
            f"{inventory.host.cpus} CPUs",
            "give the host a second CPU",
        ),
        advice(
            "cpu model", passed, f"CPU mode is {mode}", "both hosts must have the very same CPU; a named model is safer"
        ),
        advice(
            "lock manager",
            f"libvirt uses {inventory.host.lock_manager}" if inventory.host.lock_manager else "",
            "none",
            "every epoch releases the disks' leases and takes them again: slower, and the standby needs its own",
        ),
        advice(
            "monitor",
            "" if _has_private_socket(tree) else "only libvirt's monitor: 2.5 ms a call",
            "a private QMP socket",
            f"remusdb prepare {shlex.quote(inventory.vm.name)}, in effect from the VM's next start",
        ),
        advice(
            "snapshots",
            f"{inventory.vm.snapshots} snapshots" if inventory.vm.snapshots else "",
            "none",
            "they stay on this host: the replica has the disks' content, not their snapshots",
        ),
    ]


def _confinement(tree: ET.Element, host: HostInventory) -> list[Check]:
    labels = [label.get("model", "") for label in tree.iterfind("seclabel") if label.get("type") != "none"]
    confined = [model for model in labels if model in ("apparmor", "selinux")]
    if confined[:1] == ["apparmor"] and host.confinement.channel:
        return [advice("confinement", "", "AppArmor lets QEMU reach the disk channel", "")]
    hints = {
        "apparmor": apparmor.hint(apparmor.CHANNEL_RULE),
        "selinux": "QEMU must be able to reach the sockets under /run/remusdb: see ausearch -m avc if it is refused",
    }
    problem = f"QEMU is confined by {confined[0]}" if confined else ""
    return [advice("confinement", problem, "QEMU is not confined", hints.get(confined[0], "") if confined else "")]


def _peer(peer: PeerInventory, vm: VmInventory) -> list[Check]:
    problems = [peer.error] if peer.error else []
    good = f"the agent of {peer.name} answers"
    checks = [required(PEER, problems, good, peer.hint or f"is remusdb-agent running on {peer.name}?")]
    if peer.error:
        return checks
    refused = [f"{peer.name} says: {peer.refused}"] if peer.refused else []
    checks.append(required("peer primaries", refused, f"{peer.name} lets this host keep it there", peer.hint))
    return checks if refused else [*checks, *_peer_versions(peer, vm), *_peer_heartbeat(peer)]


def _peer_heartbeat(peer: PeerInventory) -> list[Check]:
    """Advice: without it, a link that is gone for a moment may look like a dead host."""
    if peer.datagrams is None:
        return []
    problem = "" if peer.datagrams else f"heartbeats over UDP do not reach {peer.name}: it hears the connection alone"
    hint = f"let UDP through to the port of the agent on {peer.name}, too: `remusdb setup` does, in its firewall"
    return [advice("peer heartbeat", problem, f"heartbeats over UDP reach {peer.name}", hint)]


def _peer_versions(peer: PeerInventory, vm: VmInventory) -> list[Check]:
    """A checkpoint moves to the same machine type, of a QEMU that is not older."""
    here, there = (".".join(map(str, version)) for version in (vm.qemu_version, peer.qemu_version))
    older = (
        [f"QEMU {there} on {peer.name} is older than the VM's {here}"] if peer.qemu_version < vm.qemu_version else []
    )
    kind = safexml.parse(vm.xml).find("./os/type")
    machine = kind.get("machine", "") if kind is not None else ""
    unknown = [f"QEMU on {peer.name} has no machine type {machine}"] if machine not in peer.machines else []
    libvirt = ".".join(map(str, peer.libvirt_version))
    return [
        required("peer QEMU", older, f"QEMU {there}, libvirt {libvirt} on {peer.name}", f"upgrade QEMU on {peer.name}"),
        required("peer machine", unknown, f"{peer.name} has {machine}", "both hosts need the same machine types"),
    ]


def _memory_bytes(tree: ET.Element) -> int:
    memory = tree.find("memory")
    if memory is None:
        return 0
    return int(memory.text or 0) * MEMORY_UNITS.get(memory.get("unit", "KiB"), 1 << 10)


def _has_private_socket(tree: ET.Element) -> bool:
    words = [arg.get("value", "") for arg in tree.iter(f"{{{QEMU_NS}}}arg")]
    return any(f"id={CHARDEV}" in word for word in words)
