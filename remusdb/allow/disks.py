# SPDX-License-Identifier: Apache-2.0
"""Disks: which can be mirrored into the backup's raw images, and what to do about each that cannot."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator

from remusdb.allow.problem import Problem, Vm, edit, target_of
from remusdb.names import is_disk_target

KINDS = ("file", "block", "volume")
FORMATS = ("raw", "qcow2")
HOT = ("virtio", "scsi", "usb")  # the buses that disks can be taken off while the guest runs
FOREIGN_WRITERS = ("vhostuser", "vhostvdpa", "nvme")
MEDIUM = ("file", "dev", "dir", "pool", "name", "protocol")  # attributes of a source that names something


def disk(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """All that is wrong with one disk or drive."""
    if element.get("type") in FOREIGN_WRITERS:
        what = f"disk {target_of(element)} of type {element.get('type')}"
        hint = f"its backend writes the guest's memory unseen by QEMU: {take_out(element, vm)}"
        yield Problem("guest memory", what, hint)
    elif element.get("device", "disk") in ("cdrom", "floppy"):
        yield from _medium(element, vm)
    else:
        yield from _backend(element, vm)
        yield from _flags(element, vm)


def take_out(element: ET.Element, vm: Vm) -> str:
    """The command that takes a disk out of its VM: at once where the bus lets it go."""
    target, bus = target_of(element), element.find("target")
    if bus is not None and bus.get("bus") in HOT:
        return f"virsh detach-disk {vm} {target} {vm.scope}"
    return f"virsh detach-disk {vm} {target} --config; in effect from the VM's next start"


def _medium(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """A drive may stay; what is in it is not on the backup. An ejected one keeps a <source> with an index alone."""
    source, target = element.find("source"), target_of(element)
    if source is not None and any(source.get(name) for name in MEDIUM):
        hint = f"eject it: virsh change-media {vm} {target} --eject"
        yield Problem("media", f"{target} has a medium, which the backup does not have", hint)


def _backend(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    target, driver, source = target_of(element), element.find("driver"), element.find("source")
    kind, device = element.get("type", "file"), element.get("device", "disk")
    form = driver.get("type", "raw") if driver is not None else "raw"
    if device != "disk":
        hint = edit(vm, f"make the device of {target} 'disk' instead of '{device}'")
        yield Problem("disks", f"{target} is a {device}: the guest speaks to the host's device itself", hint)
    elif not is_disk_target(target):
        hint = edit(vm, f"call {target} vdb, sdc or the like, with the bus's own letters")
        yield Problem("disks", f"{target} is no name under which a disk can be replicated", hint)
    if kind == "network" or (source is not None and source.get("mode") == "direct"):
        hint = (
            f"map it on this host (rbd map, iscsiadm, nbd-client) and give {target} the block device; "
            f"or without it: {take_out(element, vm)}"
        )
        yield Problem("disks", f"{target} is of type {kind}, reached by QEMU over the network", hint)
    elif kind not in KINDS:
        hint = f"a file, a block device or a volume of a pool can be replicated; without it: {take_out(element, vm)}"
        yield Problem("disks", f"{target} is of type {kind}", hint)
    elif form not in FORMATS:
        hint = (
            f"with the VM off: qemu-img convert -O qcow2 OLD NEW; then virsh edit {vm}: {target} on NEW, type='qcow2'"
        )
        yield Problem("disks", f"{target} has format {form}", hint)


def _flags(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    target, out = target_of(element), take_out(element, vm)
    if element.find("readonly") is not None:
        hint = f"a seed disk that has done its work: {out}"
        yield Problem("disks", f"{target} is read-only, and would not be mirrored", hint)
    if element.find("shareable") is not None:
        hint = edit(vm, f"remove <shareable/> from {target} if no other VM uses it")
        yield Problem("disks", f"{target} is shared with other VMs, whose writes would not be mirrored", hint)
    if element.find("transient") is not None:
        hint = edit(vm, f"remove <transient/> from {target}")
        yield Problem("disks", f"{target} is transient: what the guest writes to it is discarded", hint)
    if element.find("encryption") is not None or element.find("source/encryption") is not None:
        hint = (
            "encrypt inside the guest instead (LUKS), which is mirrored as it is: with the VM off, qemu-img convert "
            f"into a plain qcow2 file, then virsh edit {vm}: {target} on that file, without <encryption>"
        )
        yield Problem("disks", f"{target} is encrypted by QEMU, and its replica would not be", hint)
