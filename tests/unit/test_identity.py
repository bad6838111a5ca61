# SPDX-License-Identifier: Apache-2.0
"""A VM is its name and its UUID; what is no disk's target, no host's name, no UUID is none of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from remusdb.core.identity import require_same_vm
from remusdb.errors import CannotProtect
from remusdb.names import BlockName, DiskTarget, HostName, HostOrNobody, Uuid, is_disk_target

UUID = "0f3c1a52-8f0e-4d0a-9b60-3f1c2d4e5a6b"


@pytest.mark.parametrize("uuid", [UUID, UUID.upper(), f"\n {UUID} "])
def test_the_same_vm(uuid: str) -> None:
    require_same_vm("my db", UUID, "my db", uuid)


@pytest.mark.parametrize(
    ("name", "uuid"),
    [
        ("other", UUID),
        (" pg", UUID),
        ("PG", UUID),
        (None, UUID),
        ("", UUID),
        ("pg", None),
        ("pg", ""),
        ("pg", "no"),
        ("pg", UUID[:-1] + "0"),
    ],
)
def test_another_vms_xml(name: str | None, uuid: str | None) -> None:
    with pytest.raises(CannotProtect, match="XML of VM pg"):
        require_same_vm("pg", UUID, name, uuid)


@pytest.mark.parametrize("good", ["vda", "sdaaa", "hdb", "xvda", "ubda", "vda1", "sda15"])
def test_disk_targets_that_libvirt_takes(good: str) -> None:
    assert is_disk_target(good) and msgspec.convert(good, DiskTarget) == good


BAD = {
    DiskTarget: [
        *("", "vd", "vdA", "foo", "../x", "vda/..", "vda.raw", "vda\n", ".", "vda1234", "vd" + "a" * 9),
        "vd\u0430",  # a Cyrillic letter
    ],
    HostName: ["", ".a", "a/b", "a b", "a\n", "x" * 65, "hostä", "-a", "a\x1b"],
    HostOrNobody: [".a", "a/b", "a\n", "x" * 65],
    BlockName: ["", "a\n", "a\x00", "x" * 256, "ä"],
    Uuid: ["", "uuid", UUID.upper(), UUID + "\n", UUID[:-1], "../" + UUID, UUID.replace("-", "")],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in BAD.items() for text in texts])
def test_what_is_none(kind: Any, text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(text, kind)
    assert kind is not DiskTarget or not is_disk_target(text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (HostName, "a"),
        (HostName, "db-1.example_x"),
        (HostName, "x" * 64),
        (HostOrNobody, ""),
        (HostOrNobody, "hosta"),
        (BlockName, "0000:00:02.0/virtio-net-pci.rom"),
        (BlockName, "x" * 255),
        (Uuid, UUID),
    ],
)
def test_what_is_one(kind: Any, text: str) -> None:
    assert msgspec.convert(text, kind) == text
