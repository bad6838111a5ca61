# SPDX-License-Identifier: Apache-2.0
"""`<qemu:commandline>` and `<qemu:override>`: what may be said to QEMU past libvirt.

libvirt does not know what stands there, so neither a gate nor a mirror would. Let through are remusdb's own words (the
private QMP socket of `remusdb prepare`, a promoted VM's `-incoming`) and options that make no backend of any kind:
they set properties of what is there already, in words that can be no path.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from remusdb.allow.problem import Problem, Vm, edit, shown
from remusdb.vm.prepare import CHARDEV

WORD = r"[\w.+:-]*"  # no slash and no comma: neither a path nor a second setting
_SETTINGS = rf"{WORD}(=[^,/]*)?(,{WORD}(=[^,/]*)?)*"

# Option to what its value may be. Both hosts get the same, so the guest finds the same machine.
HARMLESS = {
    "-chardev": re.compile(rf"socket,id={CHARDEV},path=([^,]|,,)+,server=on,wait=off"),
    "-mon": re.compile(rf"chardev={CHARDEV},mode=control"),
    "-incoming": re.compile("defer"),
    "-global": re.compile(rf"(?!migration\.)[\w-]+\.[\w.-]+={WORD}"),
    "-cpu": re.compile(_SETTINGS),
    "-msg": re.compile(_SETTINGS),
    "-overcommit": re.compile(_SETTINGS),
    "-fw_cfg": re.compile(r"(name=)?opt/[\w./-]+,string=[^,]*"),
    "-smbios": re.compile(r"type=\d+(,(vendor|version|date|release|uefi|manufacturer|product|serial|uuid|sku|family"
                          r"|asset|location|loc_pfx|bank|part|speed|value)=([^,]|,,)*)*"),
}  # fmt: skip


def command_line(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """Each word that is not known to be harmless, with what follows it."""
    words = []
    for child in element:
        if (tag := shown(child.tag)) == "qemu:arg":
            words.append(child.get("value", ""))
        else:
            setting = f"{tag} {child.get('name', '')}".strip()
            yield Problem("command line", f"<{setting}>: not known to be harmless", edit(vm, f"remove <{setting}>"))
    for said in options(words):
        if not _is_harmless(said):
            text = " ".join(said)
            yield Problem("command line", f"{text}: not known to be harmless", edit(vm, f"remove {_args(said)}"))


def override(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """Properties of devices that libvirt makes: anything that can be no path."""
    for prop in element.iter():
        name, value = prop.get("name", ""), prop.get("value", "")
        if shown(prop.tag) == "qemu:property" and not re.fullmatch(WORD, value):
            what = f"qemu:override sets {name} to {value}"
            yield Problem("command line", f"{what}: not known to be harmless", edit(vm, f"remove {name} from it"))


def options(words: list[str]) -> Iterator[list[str]]:
    """The words as QEMU reads them: an option with its values. A word before any option stands alone."""
    said: list[str] = []
    for word in words:
        if said and not (word.startswith("-") and len(word) > 1) and said[0].startswith("-"):
            said.append(word)
            continue
        if said:
            yield said
        said = [word]
    if said:
        yield said


def _is_harmless(said: list[str]) -> bool:
    option = "-" + said[0].lstrip("-") if re.match(r"--?[^-]", said[0]) else ""
    allowed = HARMLESS.get(option)
    return allowed is not None and len(said) == 2 and bool(allowed.fullmatch(said[1]))


def _args(said: list[str]) -> str:
    return " and ".join(f"<qemu:arg value='{word}'/>" for word in said)
