# SPDX-License-Identifier: Apache-2.0
"""The hook itself, run as libvirt runs it, on the files that StateStore writes; and its installation."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from remusdb.host import libvirt_hook
from remusdb.state import StateStore


def ask(
    tmp_path: Path, vm: str, operation: str = "prepare", sub: str = "begin", shell: str = "sh"
) -> subprocess.CompletedProcess[str]:
    """What the hook answers."""
    hook = tmp_path / "hook"
    hook.write_text(libvirt_hook.hook_text(tmp_path))
    return subprocess.run([shell, hook, vm, operation, sub, "-"], input="<domain/>", capture_output=True, text=True)


@pytest.mark.parametrize(
    ("state", "starts", "comes"),
    [
        ({"role": "none"}, True, True),
        ({"role": "seeding"}, True, False),
        ({"role": "protected"}, True, False),
        ({"role": "protected", "armed": True}, False, False),
        ({"role": "solo", "armed": True}, True, True),
        ({"role": "fenced", "owner": "b"}, False, False),
        ({"role": "fenced", "quarantined": True}, False, False),
        ({"role": "standby", "armed": True}, True, False),
        ({"role": "promoting"}, True, False),
        ({"role": "promoted"}, True, True),
    ],
)
def test_the_role_decides(tmp_path: Path, state: dict[str, Any], starts: bool, comes: bool) -> None:
    StateStore(tmp_path).update("pg", peer="b", reason='"role": "none",', term=3, **state)
    assert (ask(tmp_path, "pg").returncode == 0) is starts
    assert (ask(tmp_path, "pg", "migrate").returncode == 0) is comes
    for operation in ("start begin", "started begin", "stopped end", "release end", "reconnect begin", "attach begin"):
        assert ask(tmp_path, "pg", *operation.split()).returncode == 0, operation


def test_a_refusal_says_why_and_what_to_do(tmp_path: Path) -> None:
    StateStore(tmp_path).update("pg", role="fenced", owner="hostb", term=3)
    refusal = ask(tmp_path, "pg")
    assert refusal.returncode == 1
    assert refusal.stdout == ""
    assert "hostb owns this VM" in refusal.stderr
    assert str(tmp_path / "vms" / "pg.json") in refusal.stderr


def test_a_vm_that_nothing_is_known_of_starts(tmp_path: Path) -> None:
    assert ask(tmp_path, "pg").returncode == 0, "no folder at all: remusdb is not installed"
    StateStore(tmp_path).update("pg", role="fenced")
    assert ask(tmp_path, "pg-rehearsal").returncode == 0


def test_a_state_that_cannot_be_read_refuses(tmp_path: Path) -> None:
    StateStore(tmp_path).update("pg", role="none")
    (tmp_path / "vms" / "pg.json").write_text("{")
    assert "cannot be read" in ask(tmp_path, "pg").stderr
    (tmp_path / "vms" / "pg.json").unlink()
    (tmp_path / "vms" / "pg.json").mkdir()
    assert ask(tmp_path, "pg").returncode == 1


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("vm", ["a b", "pg,1", "é%ü", "-n", "*", "it's", 'say "hi"', "$(touch x)", "日本", "a~b._-"])
def test_any_name_finds_its_file(tmp_path: Path, vm: str, shell: str) -> None:
    StateStore(tmp_path).update(vm, role="fenced")
    assert ask(tmp_path, vm, shell=shell).returncode == 1
    assert ask(tmp_path, vm + "x", shell=shell).returncode == 0


def test_install_is_whole_and_can_be_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "hooks" / "qemu.d"
    assert libvirt_hook.install(folder, tmp_path / "it's state") is True, "libvirt had no hook"
    path = folder / "remusdb"
    assert os.access(path, os.X_OK)
    StateStore(tmp_path / "it's state").update("pg", role="fenced")
    assert subprocess.run([path, "pg", "prepare", "begin", "-"], stderr=subprocess.DEVNULL).returncode == 1
    os.utime(path, (1000, 1000))
    before = path.stat().st_ino
    assert libvirt_hook.install(folder, tmp_path / "it's state") is False
    assert path.stat().st_ino == before, "nothing to do"
    libvirt_hook.install(folder, tmp_path)
    assert f"STATE_DIR={tmp_path}\n" in path.read_text()
    assert path.stat().st_mtime == 1000
    assert [entry.name for entry in folder.iterdir()] == ["remusdb"]


def test_another_hook_makes_libvirt_look(tmp_path: Path) -> None:
    folder = tmp_path / "hooks" / "qemu.d"
    folder.mkdir(parents=True)
    (folder.parent / "qemu").write_text("#!/bin/sh\n")
    assert libvirt_hook.install(folder, tmp_path) is True, "it cannot be executed"
    (folder / "remusdb").unlink()
    (folder.parent / "qemu").chmod(0o755)
    assert libvirt_hook.install(folder, tmp_path) is False


def test_active_is_unknown_of_a_libvirt_elsewhere(tmp_path: Path) -> None:
    assert libvirt_hook.hook_active("qemu+ssh://elsewhere/system", tmp_path) is None
