# SPDX-License-Identifier: Apache-2.0
"""The machine: its type must be a real one, which the backup can build again, and nothing may start the VM unasked."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from remusdb.allow.problem import Problem, Vm, edit

# Upstream's pc-q35-10.0, distributions' pc-q35-noble, pc-i440fx-rhel7.6.0, rhel6.6.0, pc-1.2. QEMU keeps the device
# state of these alike from version to version, which it does not promise for microvm, isapc or none.
REAL = re.compile(r"pc-[\w.+-]+|rhel\d[\w.-]*")
# What follows a VM's end when QEMU itself goes on (preserve, and restart after a poweroff or reboot, are a reset of the
# same process) or nothing is started.
LIFECYCLE = {
    "on_poweroff": ("destroy", "preserve", "restart"),
    "on_reboot": ("destroy", "preserve", "restart"),
    "on_crash": ("destroy", "preserve", "coredump-destroy"),
    "on_lockfailure": ("poweroff", "pause", "ignore"),
}
EVENTS = {"on_poweroff": "poweroff", "on_reboot": "reboot", "on_crash": "crash"}


def machine(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """`<os><type>`: an x86-64 machine of a real type."""
    arch, kind = element.get("arch", "x86_64"), element.get("machine", "")
    if arch != "x86_64":
        hint = "only x86-64 guests can be protected: the capture is written for them"
        yield Problem("machine", f"a guest of {arch} architecture", hint)
        return
    if (element.text or "hvm").strip() != "hvm":
        hint = "only fully virtualised guests (hvm) can be protected"
        yield Problem("machine", f"a guest of type {(element.text or '').strip()}", hint)
    if not REAL.fullmatch(kind):
        hint = edit(vm, f"machine='{canonical_hint(kind)}'")
        yield Problem("machine", f"machine type `{kind}` has no version: the backup might build another one", hint)


def canonical_hint(alias: str) -> str:
    """A machine of the family that an alias stands for, which QEMU from 8.2 on has."""
    return "pc-q35-8.2" if "q35" in alias else "pc-i440fx-8.2"


def comes_back(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """Nothing but the operator may start this VM again: after a failover that would be a second one speaking."""
    action = (element.text or "").strip()
    if action in LIFECYCLE[element.tag]:
        return
    what = f"libvirt starts it again ({element.tag} is {action})"
    if element.tag in EVENTS:
        hint = f"virsh set-lifecycle-action {vm} {EVENTS[element.tag]} destroy {vm.scope}"
    else:
        hint = edit(vm, f"<{element.tag}>poweroff</{element.tag}>")
    yield Problem("on_crash", what, hint)
