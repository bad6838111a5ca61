# SPDX-License-Identifier: Apache-2.0
"""The processes on this host that a protected VM has, and the CPU that they take. They are looked at, and no more."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import psutil

from remusdb.names import socket_stem

WORKER: Final = "remusdb.worker"
# What stands in the command line of a worker's child, and what it is called.
CHILDREN: Final = (
    ("remusdb.net.tapgate_process", "gate"),
    ("remusdb.capture.guard", "guard"),
    ("nbdkit", "nbdkit"),
)


class CpuMeter:
    """Of one VM, from its making on."""

    def __init__(self, vm: str, run_dir: Path) -> None:
        """`run_dir`: where the daemons' sockets are."""
        self._vm, self._run_dir = vm, run_dir
        self._began, self._before = time.monotonic(), self._now()

    def read(self) -> dict[str, float]:
        """By program, ms of CPU a second. What ended meanwhile does not count; what began does."""
        took_s = time.monotonic() - self._began
        found: dict[str, float] = {}
        for (name, process), seconds in self._now().items():
            found[name] = found.get(name, 0.0) + seconds - self._before.get((name, process), 0.0)
        return {name: round(1000 * seconds / took_s, 1) for name, seconds in sorted(found.items())}

    def _now(self) -> dict[tuple[str, tuple[int, float]], float]:
        found = {}
        for name, process in of_vm(self._vm, self._run_dir):
            with contextlib.suppress(psutil.Error):  # it has ended
                found[name, (process.pid, process.create_time())] = sum(process.cpu_times()[:2])
        return found


def of_vm(vm: str, run_dir: Path) -> list[tuple[str, psutil.Process]]:
    """Each with what it is called. Those of another network namespace are another host's, or a container's."""
    socket = str(run_dir / f"worker-{socket_stem(run_dir, 'worker-', vm, '.sock')}.sock")
    here = _network("self")
    found: list[tuple[str, psutil.Process]] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            name = called(process.cmdline(), vm, socket)
            if name is None or _network(process.pid) != here:
                continue
            found.append((name, process))
            if name == "worker":
                found += _children(process.children(recursive=True))
    return found


def called(command: Sequence[str], vm: str, worker_socket: str) -> str | None:
    """`qemu` or `worker`, where a process with this command line is this VM's."""
    if WORKER in command and command[-1] == worker_socket:
        return "worker"
    guest = f"guest={vm.replace(',', ',,')}"  # as QEMU has commas in a value
    value = command[command.index("-name") + 1] if "-name" in command[:-1] else ""
    rest = value.removeprefix(guest)
    whole = value.startswith(guest) and (not rest or (rest[0] == "," and rest[:2] != ",,"))
    return "qemu" if whole else None


def _children(processes: Iterable[psutil.Process]) -> list[tuple[str, psutil.Process]]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            name = next((name for part, name in CHILDREN if part in command), "other")
            found.append((name, process))
    return found


def _network(pid: int | str) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")
