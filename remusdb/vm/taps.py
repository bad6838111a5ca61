# SPDX-License-Identifier: Apache-2.0
"""The taps that a process has open, as the kernel tells it: truth also while libvirt is still about to attach one."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path

TUN = "/dev/net/tun"
NAME = re.compile(r"^iff:\s*(\S+)", re.MULTILINE)
MACVTAP = re.compile(r"/dev/tap(\d+)\Z")  # the number is the link's ifindex


def taps_of(pid: int) -> dict[str, str]:
    """The taps that `pid` holds open: their kind ("tun" or "macvtap") by name. None once it has ended."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed, or gone, meanwhile
                found |= _tap(pid, fd)
    return found


def _tap(pid: int, fd: Path) -> dict[str, str]:
    target = str(fd.readlink())
    if target == TUN:
        named = NAME.search(Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text())
        return {named[1]: "tun"} if named else {}
    macvtap = MACVTAP.match(target)
    return {socket.if_indextoname(int(macvtap[1])): "macvtap"} if macvtap else {}


def has_files(pid: int) -> bool:
    """Whether `pid` holds anything open: one that is ending does not any more, though it may be there for a while."""
    try:
        return any(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
