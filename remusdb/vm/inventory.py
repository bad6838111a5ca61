# SPDX-License-Identifier: Apache-2.0
"""The devices in a live domain XML, and what became different between two: pure decisions.

Everything under <devices> counts as it stands, so that what nobody thought of is a change, too. Left out is only what
moves by itself or is not the VM's: link state (it is in the device state), our own block copies, throttling, whether
somebody is connected.
"""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass

IGNORED = frozenset({"emulator", "graphics", "audio"})  # where the VM is looked at from: no guest can tell
REMOVABLE = ("cdrom", "floppy")
# Of each kind of device: children and attributes ("path@attribute") that may change while it stays the same device.
MOVES = {
    "disk": ("mirror", "backingStore", "iotune", "source@index", "target@tray"),
    "interface": ("link", "coalesce"),
    "memballoon": ("stats",),
    "memory": ("target/requested", "target/current"),
    "channel": ("target@state",),
}


@dataclass(frozen=True)
class Item:
    """One device: how a person calls it, and all that must stay the same."""

    called: str
    content: str
    medium: str = ""  # of a drive with a medium in it


def inventory(tree: ET.Element) -> dict[str, Item]:
    """The devices of a live domain XML, and its vCPUs, by a key that no other one has."""
    found = {"vcpus": Item("vCPUs", _vcpus(tree))}
    counts = Counter[str]()
    for element in tree.iterfind("./devices/*"):
        if element.tag in IGNORED:
            continue
        base = f"{element.tag} {_alias(element)}"
        known = counts[base] = counts[base] + 1
        found[f"{base}\0{known}"] = _item(element)  # no XML has a NUL
    return found


def changes(before: dict[str, Item], after: dict[str, Item]) -> list[str]:
    """What happened between the two, in words; empty when nothing did."""
    told = [f"{after[key].called} was attached" for key in after if key not in before]
    told += [f"{before[key].called} was detached" for key in before if key not in after]
    both = [(before[key], after[key]) for key in before if key in after]
    return told + [_changed(old, new) for old, new in both if (old.content, old.medium) != (new.content, new.medium)]


def _changed(old: Item, new: Item) -> str:
    if old.called == "vCPUs":
        return f"there are {new.content} vCPUs, {old.content} before"
    if old.medium != new.medium and not old.medium:
        return f"a medium was put into {new.called}"
    if old.medium != new.medium:
        return f"the medium in {new.called} was {'changed' if new.medium else 'taken out'}"
    return f"{new.called} was changed"


def _item(element: ET.Element) -> Item:
    clean = copy.deepcopy(element)
    clean.tail = None  # what stands behind it is not the device's
    removable = element.tag == "disk" and element.get("device") in REMOVABLE
    for path in MOVES.get(element.tag, ()) + (("driver",) if removable else ()):
        _drop(clean, path)
    medium = ""
    source = clean.find("source")
    if removable and source is not None:
        medium = ET.tostring(source, encoding="unicode").strip() if len(source) or source.attrib else ""
        clean.remove(source)
    return Item(_called(element), ET.canonicalize(ET.tostring(clean, encoding="unicode"), strip_text=True), medium)


def _drop(element: ET.Element, path: str) -> None:
    path, _, attribute = path.partition("@")
    above, _, tag = path.rpartition("/")
    for parent in element.iterfind(above or "."):
        for child in parent.findall(tag):
            if attribute:
                child.attrib.pop(attribute, None)
            else:
                parent.remove(child)


def _called(element: ET.Element) -> str:
    if element.tag == "interface" and (mac := element.find("mac")) is not None:
        return f"interface {mac.get('address', '')}"
    target = element.find("target")
    if element.tag == "disk" and target is not None:
        return f"{'drive' if element.get('device') in REMOVABLE else 'disk'} {target.get('dev', '')}"
    if element.tag == "channel" and target is not None and target.get("name"):
        return f"channel {target.get('name')}"
    return f"{element.tag} {_alias(element)}".strip()


def _alias(element: ET.Element) -> str:
    alias = element.find("alias")
    return alias.get("name", "") if alias is not None else ""


def _vcpus(tree: ET.Element) -> str:
    """How many vCPUs the guest has now, in libvirt's words: one by one, once that says more than a number."""
    each = tree.findall("./vcpus/vcpu")
    if each:
        return str(sum(vcpu.get("enabled") == "yes" for vcpu in each))
    vcpu = tree.find("vcpu")
    return (vcpu.get("current") or vcpu.text or "1").strip() if vcpu is not None else "1"
