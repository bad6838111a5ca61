# SPDX-License-Identifier: Apache-2.0
"""Domain XML of the lab's VMs: plain ones, as someone who has never heard of remusdb would have them.

Ordinary memory, no QMP socket of its own, a disk file, a NIC on a bridge. The machine type is a versioned one:
a checkpoint fits only the machine that it was taken from.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from remusdb.names import file_stem
from tools.lab import accel, guest
from tools.lab.host import Host
from tools.lab.image import DbImage

MACHINE = "pc-q35-10.0"
IDE_MACHINE = "pc-i440fx-10.0"  # the one with a disk that a few port writes reach
VIRTIO = "<target dev='vda' bus='virtio'/>"
DB_IP4, DB_IP6, DB_MAC = "10.77.0.10", "fd77::10", "52:54:00:77:00:10"
BARE_MAC = "52:54:00:77:00:20"
_IMAGES = "/var/lib/libvirt/images"
# A named model: `host` makes a nested KVM fail (docs/facts.md), and TCG knows no newer one in full. This one has
# SSE 4.2, which makes PostgreSQL's checksums cheap in emulation.
_CPU = "<cpu mode='custom' match='exact' check='none'><model fallback='forbid'>Nehalem</model></cpu>"


@dataclass(frozen=True)
class Vm:
    """A VM that was defined on a host. `disk` and `serial` are paths on the host; `accel` is its domain type."""

    name: str
    accel: str
    disk: str
    serial: str

    def serial_text(self, host: Host) -> str:
        """What the VM has printed on its serial console so far."""
        return host.path(self.serial).read_text(errors="replace")


def define_db(host: Host, image: DbImage, *, name: str = "", memory_mib: int = 512) -> Vm:
    """Copies the database VM's disk to the host and defines the domain; `virsh start` boots it."""
    kind = accel.linux(image)
    name = name or image.dbms.vm
    vm = Vm(name, kind, f"{_IMAGES}/{name}.raw", f"/var/log/libvirt/{name}-serial.log")
    image.copy_disk(host.path(vm.disk))
    # The kernel looks for no device that this VM lacks, and trusts its CPU: each saves boot time in emulation.
    append = "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off random.trust_cpu=on 8250.nr_uarts=1"
    boot = f"<kernel>{image.kernel}</kernel><initrd>{image.initrd}</initrd><cmdline>{append}</cmdline>"
    _define(host, vm, boot, DB_MAC, memory_mib)
    return vm


def define_bare(
    host: Host,
    mode: guest.Mode,
    *,
    name: str = "bare",
    memory_mib: int = 256,
    disk_mib: int = 8,
    kind: str = "",
    vcpus: int = 1,
    folder: str = _IMAGES,
    ide: bool = False,
    kernel: Path | None = None,
) -> Vm:
    """Defines the bare-metal guest, with an empty disk in `folder` and a NIC that it never looks at.

    `kind`: `qemu` for TCG. `kernel`: a guest of another size than the mode's. `ide`: on the older board, with a disk
    that the guest can write to (see guest.S).
    """
    stem = file_stem(name)  # libvirt loses a tab in a path
    vm = Vm(name, kind or accel.bare_metal(), f"{folder}/{stem}.raw", f"/var/log/libvirt/{stem}-serial.log")
    disk = host.path(vm.disk)
    disk.parent.mkdir(parents=True, exist_ok=True)
    with disk.open("wb") as file:
        file.truncate(disk_mib << 20)
    machine, target = (IDE_MACHINE, "<target dev='hda' bus='ide'/>") if ide else (MACHINE, VIRTIO)
    boot = _bare_boot(kernel or guest.build(mode))
    _define(host, vm, boot, BARE_MAC, memory_mib, vcpus, machine=machine, target=target)
    return vm


def define_disk_reader(host: Host, disk: str, disk_pages: int, *, name: str = "reader", memory_mib: int = 32) -> Vm:
    """Defines the bare-metal guest that reads `disk`, a raw file that is there, past the host's page cache."""
    vm = Vm(name, accel.bare_metal(), disk, f"/var/log/libvirt/{name}-serial.log")
    boot = _bare_boot(guest.build_disk_reader(disk_pages))
    _define(host, vm, boot, BARE_MAC, memory_mib, cache="none", target="<target dev='sda' bus='sata'/>")
    return vm


def _bare_boot(kernel: Path) -> str:
    # qboot starts a kernel and does nothing else; SeaBIOS needs 6 s for that under a nested KVM.
    rom = "/usr/share/qemu/qboot.rom"
    return f"<loader readonly='yes' type='rom'>{rom}</loader><kernel>{kernel}</kernel>"


def change(host: Host, name: str, edit: Callable[[ET.Element], None]) -> None:
    """Defines a VM again, in effect from its next start: `edit` is given its <domain>."""
    root = ET.fromstring(host.run(["virsh", "dumpxml", "--inactive", "--security-info", name]).stdout)
    edit(root)
    host.run(["virsh", "define", "/dev/stdin"], stdin=ET.tostring(root, encoding="unicode"))


def _define(
    host: Host,
    vm: Vm,
    boot: str,
    mac: str,
    memory_mib: int,
    vcpus: int = 1,
    *,
    machine: str = MACHINE,
    cache: str = "",
    target: str = VIRTIO,
) -> None:
    xml = f"""\
<domain type='{vm.accel}'>
  <name>{escape(vm.name)}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>{vcpus}</vcpu>
  <os><type arch='x86_64' machine='{machine}'>hvm</type>{boot}</os>
  <features><acpi/><apic/></features>
  {_CPU}
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='{cache or _cache_mode(host.path(vm.disk))}' discard='unmap'/>
      <source file={quoteattr(vm.disk)}/>
      {target}
    </disk>
    <interface type='bridge'>
      <mac address='{mac}'/>
      <source bridge='br0'/>
      <model type='virtio'/>
    </interface>
    <serial type='file'><source path={quoteattr(vm.serial)}/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""
    host.run(["virsh", "define", "/dev/stdin"], stdin=xml)


def _cache_mode(disk: Path) -> str:
    """`none`, as VMs on real hosts have it, where the file system can do O_DIRECT; else `writeback`."""
    try:
        os.close(os.open(disk, os.O_RDWR | os.O_DIRECT))
    except OSError:
        return "writeback"
    return "none"
