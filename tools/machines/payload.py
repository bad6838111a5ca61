# SPDX-License-Identifier: Apache-2.0
"""What is brought to the hosts: remusdb's .deb, certificates made for this run, the guest, the scripts."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tools.dist import deb, wheel
from tools.lab import guest

_HERE = Path(__file__).parent
# As slow as an emulated host with an emulated VM needs; the same as in tests/plug, where that was tried.
HOST_TOML = """\
[protection]
gate = "plug"
epoch_ms = 1000
heartbeat_ms = 1000
connect_timeout_ms = 20000
vm_call_timeout_ms = 60000
libvirt_patience_ms = 120000
"""
AGENT_TOML = """\
[failover]
silence_ms = 30000
"""


def collect(folder: Path, addresses: Mapping[str, str], slow: bool = True) -> Path:
    """Fills `folder` with all that the hosts want; `addresses` are theirs. Gives it. Takes some seconds.

    `slow`: with the settings for emulated hosts. Raises subprocess.CalledProcessError when a step fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    deb.build(wheel.build(folder), folder)
    named = [part for name, address in addresses.items() for part in ("--host", f"{name}={address}")]
    _run([str(Path(sys.executable).with_name("remusdb")), "certs", "--out", str(folder / "tls"), *named])
    shutil.copy(guest.build(guest.Mode.READER), folder / "guest.bin")
    for script in _HERE.glob("*.sh"):
        shutil.copy(script, folder)
    settings = folder / "settings"
    settings.mkdir()
    (settings / "host.toml").write_text(HOST_TOML if slow else "")
    (settings / "agent.toml").write_text(AGENT_TOML if slow else "")
    return folder


def pack(folder: Path) -> Path:
    """A tar of the folder, in the size that a disk must have: the second disk of a machine."""
    packed = folder.with_suffix(".tar")
    with tarfile.open(packed, "w") as tar:
        tar.add(folder, ".")
    return packed


def _run(command: list[str]) -> str:
    return subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=300
    ).stdout
