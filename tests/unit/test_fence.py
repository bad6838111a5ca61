# SPDX-License-Identifier: Apache-2.0
"""What of quarantining a VM needs no libvirt: which QEMU is meant, and where its disks go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remusdb.errors import DiskError
from remusdb.host.quarantine.files import SavedDefinition, move_aside, remove_older
from remusdb.host.quarantine.retire import quarantine
from remusdb.state import VmState
from remusdb.vm.process import is_qemu_of


@pytest.mark.parametrize("role", ["none", "seeding", "protected", "solo", "standby", "promoting", "promoted"])
def test_only_a_fenced_vm_is_quarantined(tmp_path: Path, role: Any) -> None:
    with pytest.raises(ValueError, match=role):
        quarantine("qemu:///system", VmState(vm="pg", role=role), "keep", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("words", "is_it"),
    [
        ("qemu -name guest=pg,debug-threads=on -S", True),
        ("qemu -name guest=pg", True),
        ("qemu -name guest=pg2,debug-threads=on", False),
        ("qemu -name guest=pg,,2,debug-threads=on", False),
        ("qemu -S guest=pg", False),
        ("vim guest=pg,x", False),
        ("", False),
    ],
)
def test_the_command_line_tells_whose_qemu_it_is(words: str, is_it: bool) -> None:
    assert is_qemu_of("pg", words.replace(" ", "\0").encode()) is is_it


def test_a_comma_in_a_name_is_doubled() -> None:
    assert is_qemu_of("pg,2", b"qemu\0-name\0guest=pg,,2,debug-threads=on\0")
    assert is_qemu_of("pg,", b"qemu\0-name\0guest=pg,,,debug-threads=on\0")
    assert not is_qemu_of("pg,", b"qemu\0-name\0guest=pg,,2,debug-threads=on\0")


def test_our_disk_moves_once_and_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "pg"
    folder.mkdir()
    ours, theirs = folder / "vda.raw", tmp_path / "data.raw"
    for path in (ours, theirs):
        path.write_text(path.name)
    kept = str(folder / "quarantine-term7" / "vda.raw")
    assert move_aside(str(ours), folder, 7) == kept
    assert move_aside(str(ours), folder, 7) == kept, "again, after a crash"
    assert move_aside(kept, folder, 7) == kept
    assert move_aside(str(theirs), folder, 7) == str(theirs)
    assert (Path(kept).read_text(), theirs.exists(), ours.exists()) == ("vda.raw", True, False)
    ours.write_text("the next session's")
    assert move_aside(str(ours), folder, 7) == kept
    assert Path(kept).read_text() == "vda.raw", "what is kept is never overwritten"


def test_a_disk_that_cannot_move_is_told(tmp_path: Path) -> None:
    (tmp_path / "vda.raw").touch()
    (tmp_path / "quarantine-term7").touch()
    with pytest.raises(DiskError, match="quarantine-term7"):
        move_aside(str(tmp_path / "vda.raw"), tmp_path, 7)


def test_only_older_folders_of_ours_go(tmp_path: Path) -> None:
    for name in (
        "quarantine-term3",
        "quarantine-term9",
        "quarantine-term12",
        "quarantine-terms",
        "quarantine-term1x",
        "other",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vda.raw").touch()
    assert remove_older(tmp_path, 10) == [], "nothing was kept in term 10"
    assert remove_older(tmp_path, 12) == [tmp_path / "quarantine-term3", tmp_path / "quarantine-term9"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other",
        "quarantine-term12",
        "quarantine-term1x",
        "quarantine-terms",
    ]


def test_the_definition_follows_the_disks(tmp_path: Path) -> None:
    saved = SavedDefinition(tmp_path, "pg", 7)
    saved.definition.parent.mkdir()
    saved.definition.write_text(
        "<domain><devices>"
        "<disk device='disk'><source file='/i/vda.raw'/><target dev='vda'/></disk>"
        "<disk><source dev='/dev/vg/pg'/><target dev='vdb'/></disk>"
        "<disk device='cdrom'><source file='/x.iso'/><target dev='sda'/></disk>"
        "<disk><source file='/ro.raw'/><target dev='vdc'/><readonly/></disk>"
        "<disk type='network'><source protocol='rbd' name='p/i'/><target dev='vdd'/></disk>"
        "</devices></domain>"
    )
    assert saved.disks() == {"vda": "/i/vda.raw", "vdb": "/dev/vg/pg"}
    saved.rename_disks({"/i/vda.raw": "/i/kept/vda.raw"})
    assert saved.disks() == {"vda": "/i/kept/vda.raw", "vdb": "/dev/vg/pg"}
    saved.live.write_text(
        "<domain><devices><disk><source file='/hot.raw'/><target dev='vdb'/></disk></devices></domain>"
    )
    assert saved.disks() == {"vda": "/i/kept/vda.raw", "vdb": "/hot.raw"}, "as it ran goes first"
    saved.live.write_text(
        "<domain><devices><disk><driver type='qcow2'/><source file='/v'/><target dev='vda'/></disk></devices></domain>"
    )
    assert saved.formats() == {"vda": "qcow2", "vdb": "raw"}, "by the definition, whatever the content looks like"


@pytest.mark.parametrize(
    "nvram", ["<nvram template='/t'>/i/nvram.fd</nvram>", "<nvram><source file='/i/nvram.fd'/></nvram>"]
)
def test_variables_go_with_the_disks(tmp_path: Path, nvram: str) -> None:
    saved = SavedDefinition(tmp_path, "pg", 7)
    saved.definition.parent.mkdir()
    saved.definition.write_text(f"<domain><os>{nvram}</os></domain>")
    assert saved.disks() == {"nvram": "/i/nvram.fd"} and saved.formats() == {"nvram": ""}
    saved.rename_disks({"/i/nvram.fd": "/i/kept/nvram.fd"})
    assert saved.disks() == {"nvram": "/i/kept/nvram.fd"}
    assert saved.definition.read_text().count("/i/") == 1
