# SPDX-License-Identifier: Apache-2.0
"""Processes by the network namespace they live in.

A lab owns its namespaces, so membership is the one test of "is this process ours" that also holds for
daemons, double forks and whatever libvirt started.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from remusdb.deadline import Deadline


def namespace_id(path: Path) -> tuple[int, int]:
    """Identity of a namespace file such as /run/netns/x or /proc/1/ns/net."""
    found = path.stat()
    return found.st_dev, found.st_ino


def members(netns: tuple[int, int]) -> list[int]:
    """All processes whose network namespace is `netns`, in no order. Zombies have none and are left out."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            ns = os.stat(f"/proc/{entry}/ns/net")
        except OSError:  # it ended meanwhile, or is a zombie
            continue
        if (ns.st_dev, ns.st_ino) == netns:
            found.append(int(entry))
    return found


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL every process; those that are gone already are no error."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def kill_members(netns: tuple[int, int], *, spare: Iterable[int] = (), timeout_s: float = 10.0) -> None:
    """Kills until the namespace has no process but `spare`: one that forks may outrun a single pass.

    Raises TimeoutError when something is still there after `timeout_s`.
    """
    kept = set(spare)
    deadline = Deadline.after(timeout_s)
    while left := set(members(netns)) - kept:
        kill_all(left)
        if deadline.over:
            raise TimeoutError(f"processes {sorted(left)} do not end")
        time.sleep(0.01)


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot, or None if there is no such process.

    With the pid it names a process for good: a pid alone may be taken again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces
    return None if fields[0] == "Z" else int(fields[19])
