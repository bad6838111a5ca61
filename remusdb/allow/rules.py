# SPDX-License-Identifier: Apache-2.0
"""Which elements are looked at more closely than their line of the table says, and what each refused one is told."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping

from remusdb.allow import memory
from remusdb.allow.characters import chance, character, redirection
from remusdb.allow.commandline import command_line, override
from remusdb.allow.disks import disk
from remusdb.allow.firmware import firmware
from remusdb.allow.interfaces import interface
from remusdb.allow.machine import comes_back, machine
from remusdb.allow.problem import Path, Problem, Rule, Vm, edit


def _told(what: str, instead: str) -> Rule:
    def rule(_element: ET.Element, vm: Vm) -> Iterator[Problem]:
        yield Problem("devices", what, edit(vm, instead))

    return rule


RULES: Mapping[Path, Rule] = {
    ("os",): firmware,
    ("os", "type"): machine,
    ("on_poweroff",): comes_back,
    ("on_reboot",): comes_back,
    ("on_crash",): comes_back,
    ("on_lockfailure",): comes_back,
    ("memoryBacking", "hugepages", "page"): memory.page,
    ("launchSecurity",): memory.launch_security,
    ("qemu:commandline",): command_line,
    ("qemu:override",): override,
    ("devices", "disk"): disk,
    ("devices", "interface"): interface,
    ("devices", "serial"): character,
    ("devices", "parallel"): character,
    ("devices", "console"): character,
    ("devices", "channel"): character,
    ("devices", "redirdev"): redirection,
    ("devices", "smartcard"): redirection,
    ("devices", "rng", "backend"): chance,
    ("devices", "hostdev"): memory.hostdev,
    ("devices", "filesystem"): memory.filesystem,
    ("devices", "shmem"): memory.shmem,
    ("devices", "video"): memory.video,
    ("devices", "memory"): memory.module,
    ("devices", "memory", "source", "pagesize"): memory.page,
    ("devices", "tpm"): _told("a TPM: its state is in a process or chip of this host", "remove <tpm>"),
    ("devices", "vsock"): _told("a vsock: its connections end on this host", "remove <vsock>"),
    ("devices", "pstore"): _told("a pstore, kept in a file of this host alone", "remove <pstore>"),
    ("devices", "crypto"): _told("a crypto device, which QEMU cannot save", "remove <crypto>"),
    ("devices", "lease"): _told("a lease, which the standby would hold as well", "remove <lease>"),
}
