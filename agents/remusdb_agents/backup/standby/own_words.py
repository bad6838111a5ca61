# SPDX-License-Identifier: Apache-2.0
"""`<qemu:commandline>` of a VM that another host sends: remusdb's own words alone, and those are rebuilt here.

libvirt does not look at what stands there: it can open any file, socket or program's output that QEMU's user may.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator

from remusdb.allow.commandline import HARMLESS, options
from remusdb.allow.problem import Problem, Vm, edit, shown

OWN = ("-chardev", "-mon", "-incoming")  # as `remusdb prepare`, and an agent before its VM was promoted, write them
INSTEAD = {
    "-fw_cfg": "use <sysinfo type='fwcfg'> instead",
    "-smbios": "use <sysinfo type='smbios'> instead",
    "-cpu": "set it in <cpu> instead",
    "-global": "set it as a number or a switch of one device in <qemu:override> instead",
    "-overcommit": "set it in <memoryBacking> instead",
}
PLAIN_TYPES = ("bool", "unsigned", "signed", "remove")  # of a property: none of them can name anything of a host


def command_line(line: ET.Element, vm: Vm) -> Iterator[Problem]:
    """Each word that is not ours."""
    words = [child.get("value", "") for child in line if shown(child.tag) == "qemu:arg"]
    if len(words) != len(line):
        yield Problem("command line", "an environment for QEMU", edit(vm, "remove <qemu:env>"))
    for said in options(words):
        if len(said) != 2 or said[0] not in OWN or not HARMLESS[said[0]].fullmatch(said[1]):
            text = " ".join(said)
            instead = INSTEAD.get(said[0], f"remove {' and '.join(said)} from <qemu:commandline>")
            yield Problem("command line", f"{text:.200} is passed to QEMU outside of libvirt", edit(vm, instead))


def override(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """Properties of libvirt's own devices: numbers and switches."""
    for prop in element.iter():
        name, kind = prop.get("name", ""), prop.get("type", "")
        if shown(prop.tag) == "qemu:property" and kind not in PLAIN_TYPES:
            what = f"qemu:override sets {name:.80}, which is of type {kind:.80}"
            yield Problem("command line", what, edit(vm, f"remove {name:.80} from it"))
