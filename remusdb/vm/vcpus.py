# SPDX-License-Identifier: Apache-2.0
"""How long a VM's processors have run, by the host's own count. A guest that halts in its idle loop does not run."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

NAMED = "CPU "  # "CPU 0/KVM", "CPU 0/TCG": accel/*/*-accel-ops.c


class Vcpus:
    """The vCPU threads of one QEMU. For one thread."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._files: list[int] = []
        self.look_again()

    def look_again(self) -> None:
        """Processors may have been plugged in, or out."""
        self.close()
        with contextlib.suppress(OSError):  # QEMU ends
            for task in self._tasks.iterdir():
                if (task / "comm").read_text().startswith(NAMED):
                    self._files.append(os.open(task / "schedstat", os.O_RDONLY | os.O_CLOEXEC))

    def ran_s(self) -> float:
        """Seconds that they have run so far, all together (Documentation/scheduler/sched-stats.rst, first field)."""
        total = 0
        with contextlib.suppress(OSError):
            for file in self._files:
                total += int(os.pread(file, 64, 0).split(maxsplit=1)[0])
        return total / 1e9

    def close(self) -> None:
        """May be called twice."""
        while self._files:
            os.close(self._files.pop())
