# SPDX-License-Identifier: Apache-2.0
"""The bare-metal guest with what VMs of real hosts have: two CPUs, two NICs on two bridges, disks of every kind."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from tools.lab import domains, loops
from tools.lab.guest import Mode
from tools.lab.host import Host

SECOND_MAC = "52:54:00:77:01:20"
SECOND_BRIDGE = "br1"
POOL = "lab"
DISK_MIB = 8
GENID = "2c1f1d0e-6d8f-4c7a-9b63-0f5b6a1f9e11"
_IMAGES = "/var/lib/libvirt/images"


@dataclass(frozen=True)
class Rich:
    """The VM, and its disks by target: format, and path on the host.

    vda is a raw file, vdb a block device, vdc a qcow2 file over another one, vdd a volume of a storage pool (qcow2).
    """

    vm: domains.Vm
    disks: dict[str, tuple[str, str]]


def define(host: Host, folder: Path, name: str = "rich") -> Rich:
    """Defines it on the host; `folder`, of the lab, is for what stands behind the block device."""
    vm = domains.define_bare(host, Mode.DIRTIER, name=name, disk_mib=DISK_MIB)
    add_bridge(host)
    device = loops.attach(folder / f"{host.name}-vdb.img", DISK_MIB)
    below, over = f"{_IMAGES}/below.qcow2", f"{_IMAGES}/over.qcow2"
    host.run(["qemu-img", "create", "-q", "-f", "qcow2", below, f"{DISK_MIB}M"])
    host.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 1M", below])
    host.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", over])
    host.run(["virsh", "pool-create-as", POOL, "dir", "--target", _IMAGES])
    host.run(["virsh", "vol-create-as", POOL, "volume.qcow2", f"{DISK_MIB}M", "--format", "qcow2"])

    def edit(root: ET.Element) -> None:
        vcpu, devices, os = root.find("vcpu"), root.find("devices"), root.find("os")
        assert vcpu is not None and devices is not None and os is not None
        vcpu.text = "2"
        for loader in os.findall("loader"):  # qboot does not get through the tables of a VM with a generation id
            os.remove(loader)
        root.append(ET.fromstring(f"<genid>{GENID}</genid>"))
        nic = f"<mac address='{SECOND_MAC}'/><source bridge='{SECOND_BRIDGE}'/><model type='virtio'/>"
        cache = "<metadata_cache><max_size unit='bytes'>1048576</max_size></metadata_cache>"
        for element in (
            _disk("block", "raw", f"dev='{device}'", "vdb"),
            _disk("file", "qcow2", f"file='{over}'", "vdc", cache),
            _disk("volume", "qcow2", f"pool='{POOL}' volume='volume.qcow2'", "vdd"),
            "<disk type='file' device='floppy'><target dev='fda' bus='fdc'/></disk>",
            f"<interface type='bridge'>{nic}</interface>",
        ):
            devices.append(ET.fromstring(element))

    domains.change(host, name, edit)
    disks = {
        "vda": ("raw", vm.disk),
        "vdb": ("raw", str(device)),
        "vdc": ("qcow2", over),
        "vdd": ("qcow2", f"{_IMAGES}/volume.qcow2"),
    }
    return Rich(vm, disks)


def add_bridge(host: Host) -> None:
    """The second bridge, on which nothing else is."""
    host.run(["ip", "link", "add", SECOND_BRIDGE, "type", "bridge", "stp_state", "0", "forward_delay", "0"])
    host.run(["ip", "link", "set", SECOND_BRIDGE, "up"])


def _disk(kind: str, form: str, source: str, target: str, more: str = "") -> str:
    driver = f"<driver name='qemu' type='{form}'>{more}</driver>"
    return f"<disk type='{kind}' device='disk'>{driver}<source {source}/><target dev='{target}' bus='virtio'/></disk>"
