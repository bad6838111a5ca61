# SPDX-License-Identifier: Apache-2.0
"""Preflight: what is refused and why, for each thing that a domain's XML or a host can have."""

from __future__ import annotations

import dataclasses
import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from remusdb.capture import kernel, trying
from remusdb.errors import CannotProtect
from remusdb.preflight import gather as gather_module
from remusdb.preflight.checks import Check
from remusdb.preflight.decide import decide, require
from remusdb.preflight.gather import HostInventory, Inventory, PeerInventory, VmInventory
from remusdb.vm.prepare import QEMU_NS, prepare, qmp_socket

DISK = """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/images/db1.qcow2'/>
<backingStore/><target dev='vda' bus='virtio'/></disk>"""
NIC = """<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><target dev='vnet3'/>
<model type='virtio'/></interface>"""
XML = f"""<domain type='kvm' id='3'><name>db1</name><memory unit='KiB'>1048576</memory>
<os><type arch='x86_64' machine='pc-q35-8.2'>hvm</type></os><cpu mode='custom'/><on_crash>destroy</on_crash>
<devices>{DISK}{NIC}<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
<serial type='pty'><source path='/dev/pts/1'/></serial><channel type='unix'/><memballoon model='virtio'/></devices>
</domain>"""


def look(xml: str = XML, *, host: HostInventory | None = None, gate: str = "auto", **vm: Any) -> dict[str, Check]:
    """The checks by name, of a VM and host that are good but for what is given."""
    vm_inventory = VmInventory(**{"name": "db1", "xml": xml, "running": True, "qemu_version": (10, 0, 2), **vm})
    checks = decide(Inventory(vm=vm_inventory, host=host or HostInventory(kernel="6.12"), gate=gate))
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def failed(checks: dict[str, Check], level: str = "required") -> list[str]:
    return [name for name, check in checks.items() if not check.ok and check.level == level]


def test_a_good_vm_passes() -> None:
    checks = look()
    assert failed(checks) == []
    assert failed(checks, "advice") == ["monitor"]
    assert all(check.hint == "" for check in checks.values() if check.ok)
    require("db1", list(checks.values()))


def with_device(device: str) -> str:
    return XML.replace("<memballoon", f"{device}<memballoon")


@pytest.mark.parametrize(
    ("xml", "name", "why"),
    [
        (with_device("<hostdev mode='subsystem' type='pci'/>"), "guest memory", "passed-through pci"),
        (with_device("<interface type='hostdev'/>"), "guest memory", "hostdev interface"),
        (with_device("<interface type='vhostuser'><source path='/x'/></interface>"), "guest memory", "vhostuser"),
        (with_device("<filesystem><driver type='virtiofs'/></filesystem>"), "guest memory", "virtiofs"),
        (with_device("<disk type='vhostuser'><target dev='vdb'/></disk>"), "guest memory", "vdb of type vhostuser"),
        (with_device("<video><driver name='vhostuser'/></video>"), "guest memory", "vhost-user video"),
        (with_device("<shmem name='x'/>"), "guest memory", "shmem"),
        (XML.replace("<devices>", "<launchSecurity type='sev'/><devices>"), "guest memory", "encrypted memory"),
        (with_device("<tpm><backend type='emulator'/></tpm>"), "devices", "TPM"),
        (with_device("<filesystem type='mount'/>"), "devices", "9p"),
        (with_device("<video><model><acceleration accel3d='yes'/></model></video>"), "devices", "3D"),
        (with_device("<vsock model='virtio'/>"), "devices", "vsock"),
        (with_device("<memory model='nvdimm'/>"), "devices", "nvdimm"),
        (with_device("<serial type='dev'/>"), "devices", "serial"),
        (
            XML.replace("<source bridge='br0'/>", "<source dev='eth0'/>"),
            "interfaces",
            "00:01 is of type bridge, not on",
        ),
        (XML.replace("interface type='bridge'", "interface type='direct'"), "interfaces", "type direct"),
        (with_device("<interface type='user'/>"), "interfaces", "an interface is of type user"),
        (XML.replace("<target dev='vnet3'/>", ""), "interfaces", "no tap"),
        (XML.replace("<target dev='vnet3'/>", "<target dev='v'/><bandwidth/>"), "interfaces", "bandwidth"),
        (XML.replace("<target dev='vnet3'/>", "<target dev='v'/><filterref filter='f'/>"), "interfaces", "filterref"),
        (XML.replace("<model", "<virtualport type='openvswitch'/><model"), "interfaces", "Open vSwitch"),
        (XML.replace("<disk type='file' device='disk'>", "<disk type='file' device='lun'>"), "disks", "is a lun"),
        (XML.replace("type='qcow2'", "type='vmdk'"), "disks", "format vmdk"),
        (XML.replace("<backingStore/>", "<readonly/>"), "disks", "read-only"),
        (XML.replace("<backingStore/>", "<shareable/>"), "disks", "shared"),
        (XML.replace("<backingStore/>", "<transient/>"), "disks", "transient"),
        (XML.replace("<backingStore/>", "<encryption/>"), "disks", "encrypted"),
        (XML.replace("<target dev='sda'", "<source file='/d.iso'/><target dev='sda'"), "media", "sda has a medium"),
        (XML.replace("</os>", "<loader type='pflash'>/x</loader></os>"), "firmware", "variables are in its firmware"),
        (
            XML.replace("</os>", "<loader type='pflash' readonly='no'>/x</loader></os>"),
            "firmware",
            "variables are in its firmware",
        ),
        (XML.replace("pc-q35-8.2", "q35"), "machine", "`q35` has no version"),
        (XML.replace("pc-q35-8.2", "microvm"), "machine", "no version"),
        (XML.replace("x86_64", "aarch64"), "machine", "aarch64"),
        (XML.replace("<on_crash>destroy", "<on_crash>restart"), "on_crash", "restart"),
    ],
)
def test_a_vm_that_is_refused(xml: str, name: str, why: str) -> None:
    assert xml != XML
    checks = look(xml)
    assert failed(checks) == [name]
    assert why in checks[name].detail
    assert checks[name].hint


@pytest.mark.parametrize(
    ("inventory", "name", "why"),
    [
        ({"state": "paused"}, "running", "paused"),
        ({"running": False, "state": "not running", "qemu_version": (0, 0, 0)}, "running", "not running"),
        ({"qemu_version": (8, 1, 5)}, "qemu", "QEMU 8.1.5"),
        ({"migration_blockers": ("invtsc is on",)}, "blockers", "invtsc"),
        ({"block_jobs": ("vda",)}, "block jobs", "vda"),
    ],
)
def test_a_vm_in_a_state_that_is_refused(inventory: dict[str, Any], name: str, why: str) -> None:
    checks = look(**inventory)
    assert failed(checks) == [name]
    assert why in checks[name].detail


def test_a_network_that_is_a_bridge_is_fine() -> None:
    source = "<source network='default' portid='x' bridge='virbr0'/>"
    checks = look(XML.replace("type='bridge'", "type='network'").replace("<source bridge='br0'/>", source))
    assert failed(checks) == []
    assert checks["interfaces"].detail == "on virbr0"


def test_a_vm_that_is_off_is_only_off() -> None:
    xml = XML.replace("type='bridge'", "type='network'").replace("<source bridge='br0'/>", "<source network='lan'/>")
    checks = look(xml.replace("<target dev='vnet3'/>", ""), running=False, state="not running", qemu_version=(0, 0, 0))
    assert failed(checks) == ["running"]
    assert checks["qemu"].detail == "not known while it is off"


def test_an_rhel_machine_type_is_a_version() -> None:
    assert failed(look(XML.replace("pc-q35-8.2", "pc-q35-rhel9.4.0"))) == []


def test_a_mirror_that_a_dead_worker_left_is_ours() -> None:
    mirror = "<mirror type='network' job='copy'><source><host socket='/run/remusdb/db1/disk0.sock'/></source></mirror>"
    mine = XML.replace("<backingStore/>", mirror)
    assert failed(look(mine, block_jobs=("vda",))) == []
    assert failed(look(mine.replace("/run/remusdb/", "/srv/"), block_jobs=("vda",))) == ["block jobs"]


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (HostInventory(tracking_error="PAGEMAP_SCAN: no such ioctl"), "kernel"),
        (HostInventory(ptrace_scope=3), "ptrace"),
        (HostInventory(machine="aarch64"), "architecture"),
        (HostInventory(nbdkit_error="nbdkit is not installed"), "nbdkit"),
        (HostInventory(tun=False), "gate"),
    ],
)
def test_a_host_that_cannot(host: HostInventory, name: str) -> None:
    checks = look(host=host)
    assert failed(checks) == [name]
    assert checks[name].hint


@pytest.mark.parametrize(
    ("gate", "plug", "tun", "fine"),
    [
        ("plug", False, True, False),
        ("plug", True, False, True),
        ("auto", True, False, True),
        ("auto", False, True, True),
        ("tap", True, False, False),
    ],
)
def test_the_gate_that_is_wanted_must_be_there(gate: str, plug: bool, tun: bool, fine: bool) -> None:
    assert look(host=HostInventory(plug=plug, tun=tun), gate=gate)["gate"].ok is fine


@pytest.mark.parametrize(
    ("xml", "host", "vm", "name"),
    [
        (XML.replace("mode='custom'", "mode='host-passthrough'"), None, {}, "cpu model"),
        (XML, HostInventory(lock_manager="lockd"), {}, "lock manager"),
        (XML, HostInventory(memory_available_bytes=1 << 29), {}, "host memory"),
        (XML, HostInventory(cpus=1), {}, "cpus"),
        (XML, None, {"snapshots": 2}, "snapshots"),
        (XML.replace(NIC, ""), None, {}, "network"),
        (XML.replace("<devices>", "<seclabel type='dynamic' model='apparmor'/><devices>"), None, {}, "confinement"),
        (XML.replace("<devices>", "<seclabel type='dynamic' model='selinux'/><devices>"), None, {}, "confinement"),
    ],
)
def test_advice_does_not_refuse(xml: str, host: HostInventory | None, vm: dict[str, Any], name: str) -> None:
    checks = look(xml, host=host, **vm)
    assert failed(checks) == []
    assert failed(checks, "advice") == sorted({name, "monitor"}, key=list(checks).index)
    assert checks[name].hint


def test_the_peer_is_a_check_where_one_is_named() -> None:
    vm = VmInventory("db1", XML, True, qemu_version=(10, 0, 2))
    peer = PeerInventory("beta", qemu_version=(10, 0, 13), libvirt_version=(11, 3, 0), machines=("pc-q35-8.2",))
    inventory = Inventory(vm=vm, host=HostInventory(), peer=peer)

    def peer_checks(**change: Any) -> dict[str, Check]:
        found = decide(dataclasses.replace(inventory, peer=dataclasses.replace(peer, **change)))
        return {check.name: check for check in found if check.name.startswith("peer")}

    assert [check.ok for check in peer_checks().values()] == [True, True, True, True]
    assert "peer heartbeat" not in peer_checks(), "an older agent hears no datagrams"
    assert peer_checks(datagrams=True)["peer heartbeat"].ok
    blocked = peer_checks(datagrams=False)["peer heartbeat"]
    assert (blocked.ok, blocked.level) == (False, "advice") and "UDP" in blocked.hint
    bad = peer_checks(error="certificate has expired")["peer"]
    assert (bad.ok, bad.detail, bad.hint) == (False, "certificate has expired", "is remusdb-agent running on beta?")
    unwanted = peer_checks(refused="host alpha is not among the primaries", hint="put [primaries.alpha] there")
    assert list(unwanted) == ["peer", "peer primaries"] and unwanted["peer"].ok
    found = unwanted["peer primaries"]
    assert (found.ok, found.level, found.hint) == (False, "required", "put [primaries.alpha] there")
    assert found.detail == "beta says: host alpha is not among the primaries"
    old = peer_checks(qemu_version=(9, 2, 0))["peer QEMU"]
    assert not old.ok and "9.2.0" in old.detail and "10.0.2" in old.detail
    assert not peer_checks(machines=("pc-q35-8.1",))["peer machine"].ok


def test_a_refusal_names_every_reason() -> None:
    xml = with_device("<tpm/>").replace("pc-q35-8.2", "q35")
    with pytest.raises(CannotProtect) as caught:
        require("db1", list(look(xml).values()))
    assert "machine: machine type `q35` has no version" in str(caught.value)
    assert "devices: a TPM" in str(caught.value)
    assert caught.value.exit_code == 8 and "virsh edit db1" in caught.value.hint


def test_this_kernel_is_tried_for_real() -> None:
    major, minor = (int(part) for part in os.uname().release.split(".")[:2])
    assert (trying.try_tracking() == "") is ((major, minor) >= (6, 7))


def test_a_kernel_that_cannot_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "PAGEMAP_SCAN", 0xC0606611)  # no such ioctl
    assert "PAGEMAP_SCAN: " in trying.try_tracking()
    monkeypatch.setattr(kernel, "SYS_USERFAULTFD", 9999)
    assert "userfaultfd: " in trying.try_tracking()


@pytest.mark.parametrize(
    ("text", "manager"),
    [('lock_manager = "lockd"', "lockd"), ('# lock_manager = "lockd"', ""), ('lock_manager="nop"', ""), ("", "")],
)
def test_the_lock_manager_in_qemu_conf(tmp_path: Path, text: str, manager: str) -> None:
    (tmp_path / "qemu.conf").write_text(f"a = 1\n  {text}\n")
    assert gather_module._lock_manager(tmp_path / "qemu.conf") == manager
    assert gather_module._lock_manager(tmp_path / "absent") == ""


def test_nbdkit_without_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gather_module._nbdkit_error() == "nbdkit is not installed"
    (tmp_path / "nbdkit").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "nbdkit").chmod(0o755)
    assert gather_module._nbdkit_error() == "nbdkit has no Python plugin"


UUID = "2c1f1d0e-6d8f-4c7a-9b63-0f5b6a1f9e11"


def arguments(xml: str) -> list[str]:
    return [arg.get("value", "") for arg in ET.fromstring(xml).iter(f"{{{QEMU_NS}}}arg")]


def test_prepare_adds_a_private_socket_once() -> None:
    prepared, changes = prepare(XML, UUID)
    assert arguments(prepared) == [
        "-chardev",
        f"socket,id=remusdb-qmp,path=/var/lib/libvirt/qemu/remusdb-{UUID}.sock,server=on,wait=off",
        "-mon",
        "chardev=remusdb-qmp,mode=control",
    ]
    assert len(changes) == 1 and str(qmp_socket(UUID)) in changes[0]
    assert prepare(prepared, UUID) == (prepared, [])
    assert look(prepared)["monitor"].ok


def test_prepare_keeps_what_others_wrote_and_replaces_its_own() -> None:
    theirs = (
        f"<qemu:commandline xmlns:qemu='{QEMU_NS}'><qemu:arg value='-foo'/><qemu:arg value='bar'/></qemu:commandline>"
    )
    first, _ = prepare(XML.replace("</domain>", f"{theirs}</domain>"), UUID, Path("/old,place"))
    assert f"path=/old,,place/remusdb-{UUID}.sock" in first
    second, changes = prepare(first, UUID)
    assert arguments(second)[:2] == ["-foo", "bar"] and len(arguments(second)) == 6 and changes
    assert "/old" not in second
