# SPDX-License-Identifier: Apache-2.0
"""The VM that is protected: the bare-metal guest, since its host is emulated already."""

from __future__ import annotations

from tools.machines.hosts import FILES
from tools.machines.machine import Machine

NAME = "counter"


def place_kernel(machine: Machine) -> None:
    """Puts the guest where both hosts may read it."""
    machine.run(f"install -D -m 644 {FILES}/guest.bin /var/lib/libvirt/boot/guest.bin")


def start(machine: Machine) -> str:
    """Defines the VM and starts it, as its owner did before remusdb was heard of. libvirt's domain type of it.

    That is `kvm` where the machine has a KVM which can resume a VM: one that TCG emulated did not (docs/results.md).
    """
    kind = "kvm" if machine.attempt("test -c /dev/kvm").code == 0 else "qemu"
    machine.run(f"sh {FILES}/vm.sh {NAME} {kind}")
    if kind == "qemu" or _resumes(machine):
        return kind
    machine.run(f"virsh undefine {NAME}")
    machine.run(f"sh {FILES}/vm.sh {NAME} qemu")
    return "qemu"


def _resumes(machine: Machine) -> bool:
    """Whether QEMU there takes a VM's state that it saved itself. Where it does not, the VM is shut off."""
    saved = f"/var/lib/libvirt/qemu/save/{NAME}.saved"
    machine.run(f"virsh save {NAME} {saved}")
    done = machine.attempt(f"virsh restore {saved}")
    machine.run(f"rm -f {saved}")
    return done.code == 0


def count(machine: Machine) -> int:
    """The number of the guest's last whole round, from its serial console there; 0 before the first."""
    last = machine.attempt(f"tail -c 400 /var/log/libvirt/qemu/{NAME}-serial.log").out.replace("\r", "").split("\n")
    whole = [line for line in last[:-1] if len(line) == 17]
    return int(whole[-1].split()[0], 16) if whole else 0
