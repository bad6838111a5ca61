# SPDX-License-Identifier: Apache-2.0
"""A VM as it is: `check` refuses it, its hints are done to the letter, and then it is protected, byte for byte."""

from __future__ import annotations

import re
import time

from remusdb.control.api import CheckVm
from remusdb.names import VmName
from tests.vm.pair import Pair, eventually
from tools.lab import domains
from tools.lab.guest import Mode

NAME = "as-it-is"
IMAGES = "/var/lib/libvirt/images"
SEED = f"""<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{IMAGES}/seed.raw'/>
<target dev='sdb' bus='scsi'/><readonly/></disk><controller type='scsi' model='virtio-scsi'/>"""
COMMAND = re.compile(r"virsh (?!edit)[^;,]*")


def refused(pair: Pair) -> dict[str, str]:
    """The hint of each required check that fails, by its name."""
    checks = pair.product.ask("host", "a", CheckVm(vm=VmName(NAME)), timeout_s=60).checks
    return {check.name: check.hint for check in checks if not check.ok and check.level == "required"}


def test_a_vm_is_taken_once_its_hints_are_followed(pair: Pair) -> None:
    """Its memory is a shared file in libvirt's folder, on whatever file system that is."""
    vm = domains.define_bare(pair.a, Mode.DIRTIER, name=NAME)
    pair.a.run(["truncate", "-s", "1M", f"{IMAGES}/seed.raw"])
    xml = pair.a.run(["virsh", "dumpxml", "--inactive", NAME]).stdout
    backing = "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking><os>"
    xml = xml.replace("<os>", backing).replace("<interface", f"{SEED}<interface", 1)
    xml = xml.replace("<on_crash>destroy", "<on_crash>restart")
    pair.a.run(["virsh", "define", "/dev/stdin"], stdin=xml)
    pair.a.run(["virsh", "start", NAME])
    eventually(lambda: len(vm.serial_text(pair.a)) > 20, 20, f"{NAME} prints nothing")
    hints = refused(pair)
    assert sorted(hints) == ["disks", "on_crash"]
    for hint in hints.values():
        pair.a.run(["sh", "-c", COMMAND.findall(hint)[0]])
    eventually(lambda: not refused(pair), 10, f"still refused: {refused(pair)}")
    pair.protect(NAME)
    time.sleep(1.0)
    pair.settle(NAME)
    assert pair.differing_blocks(NAME) == []
    pair.unprotect(NAME)
    pair.a.run(["virsh", "destroy", NAME])
    assert "<on_crash>destroy" in pair.a.run(["virsh", "dumpxml", "--inactive", NAME]).stdout
