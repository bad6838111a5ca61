# SPDX-License-Identifier: Apache-2.0
"""The second line against a start by accident: a hook through which libvirt itself refuses to start a fenced VM.

libvirt looks for hooks when it starts. If it had none for QEMU then, it knows of ours only after a restart.
"""

from __future__ import annotations

import os
import shlex
import time
from importlib import resources
from pathlib import Path

import psutil

from remusdb import durable
from remusdb.errors import RemusError

FOLDER = Path("/etc/libvirt/hooks/qemu.d")
NAME = "remusdb"
STATE_DIR = Path("/var/lib/remusdb")
DAEMONS = (Path("/run/virtqemud.pid"), Path("/run/libvirtd.pid"))  # the modular daemon goes before the old one
EXECUTABLE = 0o755


def install(folder: Path = FOLDER, state_dir: Path = STATE_DIR) -> bool:
    """Put the hook there, or bring it up to date. Whether libvirt has to be restarted to know of it.

    `state_dir` is where `state.StateStore` keeps its files. Its mtime stays that of the first installation.
    """
    path, content = folder / NAME, hook_text(state_dir).encode()
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        known = bool(_hooks(folder))
        since = path.stat().st_mtime if path.exists() else time.time()
        if not path.exists() or path.read_bytes() != content or path.stat().st_mode & 0o777 != EXECUTABLE:
            durable.write_file(path, content, EXECUTABLE)
            os.utime(path, (since, since))
    except OSError as exc:
        raise RemusError(f"libvirt's hook {path} cannot be installed: {exc.strerror}", hint="run as root") from exc
    return not known


def hook_text(state_dir: Path) -> str:
    """The hook as it is installed: it reads the files below `state_dir`."""
    shipped = (resources.files("remusdb.host") / "libvirt-hook.sh").read_text()
    return shipped.replace(f"\nSTATE_DIR={STATE_DIR}\n", f"\nSTATE_DIR={shlex.quote(str(state_dir))}\n", 1)


def hook_active(libvirt_uri: str, folder: Path = FOLDER) -> bool | None:
    """Whether the libvirt of this host asks our hook; None if it cannot be told (it is not running, or not here).

    Told by times: some hook for QEMU was there when the daemon started, and ours is there now. Within a second of
    each other (the kernel tells its boot in seconds) it may say False where True is right.
    """
    if libvirt_uri != "qemu:///system":
        return None
    started = _daemon_started()
    if started is None:
        return None
    hooks = _hooks(folder)
    return folder / NAME in hooks and min(hook.stat().st_mtime for hook in hooks) < started


def _hooks(folder: Path) -> list[Path]:
    """The hooks for QEMU that libvirt would run: executables in `qemu.d`, and `qemu` beside it."""
    found = [path for path in folder.iterdir() if path.name != f"{NAME}.partial"] if folder.is_dir() else []
    return [path for path in (*found, folder.parent / "qemu") if path.is_file() and os.access(path, os.X_OK)]


def _daemon_started() -> float | None:
    """When libvirt's QEMU daemon started (time.time()), or None if none runs."""
    for file in DAEMONS:
        try:
            return psutil.Process(int(file.read_text())).create_time()
        except (OSError, ValueError, psutil.Error):
            continue
    return None
