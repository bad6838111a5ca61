# SPDX-License-Identifier: Apache-2.0
"""Interfaces: which can have a gate put between tap and bridge, and what to do about each that cannot."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator

from remusdb.allow.problem import Problem, Vm, edit

FOREIGN_WRITERS = ("hostdev", "vhostuser", "vdpa")
# Rules on the tap by its name: the gate stands between tap and bridge, so they would be passed by.
PASSED_BY = {"filterref": "a filterref", "bandwidth": "a bandwidth limit"}


def interface(element: ET.Element, vm: Vm) -> Iterator[Problem]:
    """All that is wrong with one interface's definition."""
    kind, name = element.get("type", ""), name_of(element)
    if kind in FOREIGN_WRITERS:
        hint = edit(vm, f"put {name} on a Linux bridge: <interface type='bridge'>, <source bridge='BRIDGE'/>")
        yield Problem("guest memory", f"a {kind} interface, whose device writes the guest's memory unseen", hint)
        return
    if kind not in ("bridge", "network"):
        hint = edit(vm, f"make {name} <interface type='bridge'> with <source bridge='BRIDGE'/>")
        yield Problem("interfaces", f"{name} is of type {kind}, not on a bridge", hint)
        return
    yield from _parts(element, name, vm)


def name_of(element: ET.Element) -> str:
    """An interface as one calls it: by its MAC."""
    mac = element.find("mac")
    return f"interface {mac.get('address', '')}" if mac is not None else "an interface"


def _parts(element: ET.Element, name: str, vm: Vm) -> Iterator[Problem]:
    for tag, what in PASSED_BY.items():
        if element.find(tag) is not None:
            hint = edit(vm, f"remove <{tag}> from {name}")
            yield Problem("interfaces", f"{name} has {what}, a rule on its tap that the gate passes by", hint)
    virtualport = element.find("virtualport")
    if virtualport is not None:
        kind = virtualport.get("type", "")
        where = "on an Open vSwitch bridge" if kind == "openvswitch" else f"on a virtual port ({kind})"
        hint = edit(vm, f"put {name} on a Linux bridge, without <virtualport>")
        yield Problem("interfaces", f"{name} is {where}", hint)
