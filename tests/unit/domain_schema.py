# SPDX-License-Identifier: Apache-2.0
"""libvirt's own schema of domain XML, walked: each element's path below `<domain>`, with its attributes' values."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from remusdb.allow.problem import Path as ElementPath

FOLDER = Path("/usr/share/libvirt/schemas")  # of libvirt-common, without which there is no libvirt.so either
RNG = "{http://relaxng.org/ns/structure/1.0}"
# Written without a namespace in the schema's own tags: QEMU's and bhyve's share their names, so QEMU's it is.
QEMU = ("commandline", "override", "capabilities", "deprecation")
ANY = "*"  # any name, or any value


class Schema:
    """`elements`: attribute to the values that the schema lists for it (ANY among them when it takes others)."""

    def __init__(self) -> None:
        self.elements: dict[ElementPath, dict[str, set[str]]] = {}
        self._defined: dict[str, list[ET.Element]] = {}
        self._read: set[str] = set()
        self._load("domain.rng")
        for part in self._defined["domain"]:
            self._walk(part, None, frozenset())

    def _load(self, name: str) -> None:
        if name not in self._read:
            self._read.add(name)
            self._collect(ET.parse(FOLDER / name).getroot())

    def _collect(self, node: ET.Element) -> None:
        for child in node:
            if child.tag == f"{RNG}include":
                self._load(child.get("href", ""))
            if child.tag == f"{RNG}define":
                self._defined.setdefault(child.get("name", ""), []).append(child)
            elif child.tag in (f"{RNG}include", f"{RNG}div", f"{RNG}grammar"):
                self._collect(child)

    def _walk(
        self, node: ET.Element, path: ElementPath | None, inside: frozenset[tuple[str, ElementPath | None]]
    ) -> None:
        for child in node:
            tag, name = child.tag.removeprefix(RNG), _name(child)
            if tag == "element":
                self._element(child, name, path, inside)
            elif tag == "attribute" and path is not None:
                self.elements[path].setdefault(name, set()).update(self._values(child, frozenset()) or {ANY})
            elif tag == "ref" and (name, path) not in inside:
                for part in self._defined.get(name, ()):
                    self._walk(part, path, inside | {(name, path)})
            elif tag not in ("ref", "value", "data", "text", "param", "name", "attribute"):
                self._walk(child, path, inside)

    def _element(
        self, node: ET.Element, name: str, path: ElementPath | None, inside: frozenset[tuple[str, ElementPath | None]]
    ) -> None:
        if path is None:
            below: ElementPath = ()  # <domain> itself
        else:
            below = (*path, f"qemu:{name}" if not path and name in QEMU else name)
        known = below in self.elements
        self.elements.setdefault(below, {})
        if below.count(name) < 2 and (not known or path is not None):  # <backingStore> holds another one, and so on
            self._walk(node, below, inside)

    def _values(self, node: ET.Element, inside: frozenset[str]) -> set[str]:
        found: set[str] = set()
        for child in node.iter():
            name = child.get("name", "")
            if child.tag == f"{RNG}value":
                found.add((child.text or "").strip())
            elif child.tag in (f"{RNG}text", f"{RNG}data"):
                found.add(ANY)
            elif child.tag == f"{RNG}ref" and name not in inside:
                for part in self._defined.get(name, ()):
                    found |= self._values(part, inside | {name})
        return found


def _name(node: ET.Element) -> str:
    inner = node.find(f"{RNG}name")
    return node.get("name") or (inner.text or ANY if inner is not None else ANY)
