# SPDX-License-Identifier: Apache-2.0
"""The VM that is protected: the bare-metal guest, since its host is emulated already."""

from __future__ import annotations

from tools.machines.hosts import FILES
from tools.machines.machine import Machine

NAME = "counter"
COUNTS_S = 300.0  # a round of an emulated guest on an emulated host


def place_kernel(machine: Machine) -> None:
    """Puts the guest where both hosts may read it."""
    machine.run(f"install -D -m 644 {FILES}/guest.bin /var/lib/libvirt/boot/guest.bin")


def start(machine: Machine) -> str:
    """Defines the VM and starts it, as its owner did before remusdb was heard of. libvirt's domain type of it.

    A KVM that TCG emulates does not count: VMs under it could not be resumed, or stood still (docs/results.md).
    """
    kind = "kvm" if machine.accel == "kvm" and machine.attempt("test -c /dev/kvm").code == 0 else "qemu"
    machine.run(f"sh {FILES}/vm.sh {NAME} {kind}")
    machine.eventually(lambda: count(machine) > 1, COUNTS_S, "the VM does not count")
    return kind


def count(machine: Machine) -> int:
    """The number of the guest's last whole round, from its serial console there; 0 before the first."""
    last = machine.attempt(f"tail -c 400 /var/log/libvirt/{NAME}-serial.log").out.replace("\r", "").split("\n")
    whole = [line for line in last[:-1] if len(line) == 17]
    return int(whole[-1].split()[0], 16) if whole else 0
