# SPDX-License-Identifier: Apache-2.0
"""libvirt's schema of domain XML against the allowlist: every element and value is judged, and each as it must be."""

from __future__ import annotations

import functools
import xml.etree.ElementTree as ET

import pytest

from remusdb.allow.judge import FATES, judge, row_of, table
from remusdb.allow.problem import Path
from remusdb.vm.prepare import QEMU_NS
from tests.unit.domain_schema import ANY, Schema
from tools.accepted import PAGE, page

# Whatever can speak, store, be shared or be lost, and what must become of it: written down apart from the table.
MUST = {
    "gated": ["devices/interface", "devices/interface/source"],
    "mirrored": ["devices/disk", "devices/disk/source", "devices/disk/backingStore", "os/nvram"],
    "display": ["devices/graphics", "devices/audio", "devices/redirdev", "devices/smartcard"],
    "refused": [
        "devices/hostdev", "devices/filesystem", "devices/tpm", "devices/vsock", "devices/shmem", "devices/pstore",
        "devices/crypto", "devices/lease", "devices/nvram", "launchSecurity", "bootloader", "namespace", "idmap",
        "qemu:capabilities", "os/init", "devices/disk/shareable", "devices/disk/transient", "devices/disk/encryption",
        "devices/disk/auth", "devices/disk/source/host", "devices/disk/source/dataStore", "devices/rng/backend/source",
        "devices/interface/script", "devices/interface/downscript", "devices/interface/bandwidth",
        "devices/interface/filterref", "devices/interface/virtualport", "devices/interface/teaming",
        "devices/interface/portForward", "devices/interface/source/local", "devices/memory/source/path",
        "devices/input/source", "devices/smartcard/certificate", "devices/serial/protocol", "devices/console/protocol",
        "devices/parallel/protocol", "devices/channel/protocol", "devices/redirdev/protocol",
    ],
}  # fmt: skip


@functools.cache
def schema() -> Schema:
    return Schema()


def path_of(text: str) -> Path:
    return tuple(text.split("/"))


def with_element(path: Path, attributes: dict[str, str] | None = None) -> ET.Element:
    """A domain that has the element, and nothing else than what it is in."""
    root = element = ET.Element("domain", {"type": "kvm"})
    for name in path:
        element = ET.SubElement(element, name.replace("qemu:", f"{{{QEMU_NS}}}"))
    element.attrib.update(attributes or {})
    return root


def test_every_element_of_libvirts_schema_is_judged() -> None:
    elements = schema().elements
    assert len(elements) > 800 and ("devices", "serial", "log") in elements
    assert [path for path in elements if row_of(path) is None] == []


def test_every_line_has_a_fate_and_one_place() -> None:
    assert {row.fate for row in table().values()} == set(FATES)
    assert len(table()) > 200


@pytest.mark.parametrize("fate", MUST)
def test_what_can_speak_store_or_be_shared_has_the_fate_it_must(fate: str) -> None:
    for path in MUST[fate]:
        row = row_of(path_of(path))
        assert row is not None and row.fate == fate, path


def test_every_refused_element_is_refused_by_name() -> None:
    for path in schema().elements:
        row = row_of(path)
        if row is not None and row.fate == "refused":
            problems = judge(with_element(path))
            assert problems and problems[0].hint, path


def test_every_value_that_a_line_does_not_name_is_refused() -> None:
    """Of the schema's values, and one that no libvirt knows yet."""
    seen = 0
    for path, attributes in schema().elements.items():
        row = row_of(path)
        if row is None or row.fate == "refused" or row.any_attribute:
            continue
        for name, values in (attributes | {"brand-new": {ANY}}).items():
            for value in (values - {ANY}) | {"/brand/new"}:
                if not row.lets(name, value):
                    assert judge(with_element(path, {name: value})), (path, name, value)
                    seen += 1
    assert seen > 300


def test_every_value_that_a_line_names_is_known_to_libvirt() -> None:
    """A mistyped value would refuse what is meant to be taken."""
    newer = {"domain", "devices/disk/driver/statistics", "os/varstore"}
    for path, row in table().items():
        if ANY in path or "/".join(path) in newer:
            continue
        assert path in schema().elements, path
        for name, values in row.values.items():
            known = schema().elements[path].get(name, set())
            assert name in schema().elements[path] or name in ("edid", "statistics"), (path, name)
            assert values is None or ANY in known or values <= known, (path, name)


def test_what_the_schema_does_not_know_is_refused_wherever_it_is() -> None:
    for path, row in table().items():
        if row.fate == "refused" or row.anything_inside or ANY in path:
            continue
        assert judge(with_element((*path, "brand-new"))), path


def test_the_page_of_what_is_taken_is_the_tables() -> None:
    assert PAGE.read_text() == page(), "python -m tools.accepted"
