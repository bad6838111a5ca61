# SPDX-License-Identifier: Apache-2.0
"""What `remusdb forget` looks at and moves; core/backup_end.py decides.

Nothing is deleted: what is in the VM's images folder is moved aside in it.
"""

from __future__ import annotations

from pathlib import Path

import libvirt

from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.domain import connect

CALL_S = 5.0
OURS = (".raw", ".fd")  # what a session leaves in the images folder


def is_there(libvirt_uri: str, vm: str) -> bool:
    """Whether libvirt has a domain of this name, running or not. VmError when it does not say."""
    calls = BlockingCalls(CALL_S)
    try:
        connection = connect(libvirt_uri, calls)
        return bool(calls.call(f"VM {vm}", _has, connection, vm))
    finally:
        calls.close()


def _has(connection: libvirt.virConnect, vm: str) -> bool:
    return any(domain.name() == vm for domain in connection.listAllDomains())


def set_aside(folder: Path, term: int) -> list[Path]:
    """Move images out of the next session's way."""
    found = [path for path in folder.iterdir() if path.is_file() and path.suffix in OURS] if folder.is_dir() else []
    aside = folder / f"forgotten-term{term}"
    moved = []
    for path in found:
        aside.mkdir(mode=0o700, exist_ok=True)
        moved.append(path.rename(aside / path.name))
    return moved
