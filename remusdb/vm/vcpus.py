# SPDX-License-Identifier: Apache-2.0
"""How long a VM's processors have run, by the host's own count. A guest that halts in its idle loop does not run."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

NAMED = "CPU "  # "CPU 0/KVM", "CPU 0/TCG": accel/*/*-accel-ops.c


class Vcpus:
    """The vCPU threads of one QEMU. For one thread."""

    def __init__(self, pid: int) -> None:
        self._files: list[int] = []
        self._states: list[int] = []
        with contextlib.suppress(OSError):  # QEMU ends
            for task in Path(f"/proc/{pid}/task").iterdir():
                if (task / "comm").read_text().startswith(NAMED):
                    self._files.append(os.open(task / "schedstat", os.O_RDONLY | os.O_CLOEXEC))
                    self._states.append(os.open(task / "stat", os.O_RDONLY | os.O_CLOEXEC))

    def ran(self) -> list[int]:
        """Nanoseconds that each has run so far (Documentation/scheduler/sched-stats.rst, the first field).

        Of a QEMU whose threads have no names (`debug-threads=off`) it is not known: as if one ran all the time.
        """
        if not self._files:
            return [time.monotonic_ns()]
        found = []
        for file in self._files:
            with contextlib.suppress(OSError):  # it was plugged out
                found.append(int(os.pread(file, 64, 0).split(maxsplit=1)[0]))
        return found

    def wanted(self) -> bool:
        """Whether one of them runs, or would if the host had a core for it (proc_pid_stat(5), the third field)."""
        for file in self._states:
            with contextlib.suppress(OSError):
                if os.pread(file, 128, 0).rpartition(b")")[2].split(maxsplit=1)[0] == b"R":
                    return True
        return not self._states

    def close(self) -> None:
        """May be called twice."""
        for files in (self._files, self._states):
            while files:
                os.close(files.pop())


def most_s(before: list[int], after: list[int]) -> float:
    """Seconds that the busiest of them ran in between."""
    return max((late - early for early, late in zip(before, after, strict=False)), default=0) / 1e9
