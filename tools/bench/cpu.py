# SPDX-License-Identifier: Apache-2.0
"""The CPU that each program of the two hosts takes, in ms a second: where a load's missing throughput went."""

from __future__ import annotations

import contextlib
import time

import psutil

from tools.lab import Lab

HOSTS = ("a", "b")
# What stands in a process's command line, and what it is called here; the first that fits.
PROGRAMS = (
    ("remusdb.worker", "worker"),
    ("tapgate_process", "gate"),
    ("remusdb agent ", "agent"),
    ("qemu-system", "qemu"),
    ("libvirtd", "libvirt"),
    ("nbdkit", "nbdkit"),
    ("remusdb", "daemon"),
)


class CpuMeter:
    """Of both hosts, from its making on."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._began, self._before = time.monotonic(), self._now()

    def read(self) -> dict[str, float]:
        """For each host and program, as "a worker": ms of CPU a second. What ended meanwhile does not count."""
        took_s = time.monotonic() - self._began
        found: dict[str, float] = {}
        for (name, pid), seconds in self._now().items():
            found[name] = found.get(name, 0.0) + seconds - self._before.get((name, pid), 0.0)
        return {name: round(1000 * seconds / took_s, 1) for name, seconds in sorted(found.items()) if seconds}

    def _now(self) -> dict[tuple[str, int], float]:
        found = {}
        for host in HOSTS:
            for pid in self._lab.host(host).pids():
                with contextlib.suppress(psutil.Error):  # it has ended
                    process = psutil.Process(pid)
                    name = program(" ".join(process.cmdline()))
                    found[f"{host} {name}", pid] = sum(process.cpu_times()[:2])
        return found


def program(command: str) -> str:
    """What a process with this command line is called here."""
    return next((name for part, name in PROGRAMS if part in command), "other")
