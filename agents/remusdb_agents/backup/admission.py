# SPDX-License-Identifier: Apache-2.0
"""Memory for standbys: what each of them will need is set aside when it begins, not when it is touched.

A standby's RAM is taken page by page as the primary's pages come in, so what the system calls available is not
what is free to promise. Invariant: the sum of what was promised and is not taken yet never exceeds what is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from remusdb.errors import CannotProtect

QEMU_OVERHEAD_BYTES = 256 << 20  # a QEMU beside its guest's RAM, and the epochs in flight
MIB = 1 << 20


def _available() -> int:
    return int(psutil.virtual_memory().available)


@dataclass
class Promise:
    """Memory set aside for one standby: bytes, and the process that takes them (0: none yet)."""

    bytes: int
    pid: int = 0

    def taken(self) -> int:
        """What the process has taken already, in bytes."""
        try:
            resident = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * 4096 if self.pid else 0
        except (OSError, IndexError, ValueError):
            resident = 0
        return min(resident, self.bytes)


class Admission:
    """The promises of one agent."""

    def __init__(self, max_bytes: int = 0, available: Callable[[], int] = _available) -> None:
        """`max_bytes`: for all standbys together, 0 for what the host has; `available`: bytes free in the system."""
        self._max_bytes = max_bytes
        self._available = available
        self._lock = threading.Lock()
        self._promises: dict[str, Promise] = {}

    def admit(self, name: str, ram_bytes: int) -> Promise:
        """Set memory aside for a standby; CannotProtect with the figures when it does not fit."""
        with self._lock:
            self._refuse(name, ram_bytes + QEMU_OVERHEAD_BYTES)
            made = self._promises[name] = Promise(ram_bytes + QEMU_OVERHEAD_BYTES)
            return made

    def check(self, name: str, ram_bytes: int) -> None:
        """What `admit` would say now, with nothing set aside."""
        with self._lock:
            self._refuse(name, ram_bytes + QEMU_OVERHEAD_BYTES)

    def _refuse(self, name: str, need: int) -> None:
        others = {vm: promise for vm, promise in self._promises.items() if vm != name}
        promised = sum(promise.bytes for promise in others.values())
        coming = sum(promise.bytes - promise.taken() for promise in others.values())
        free = self._available() - coming
        what = ""
        if need > free:
            what = f"{max(0, free) // MIB} MiB are free on the backup host"
        elif self._max_bytes and promised + need > self._max_bytes:
            what = f"limits.memory_max_mib allows {self._max_bytes // MIB} MiB"
        if what:
            raise CannotProtect(
                f"the standby of {name} needs {need // MIB} MiB of memory; {what}, "
                f"and {len(others)} other standbys have {promised // MIB} MiB",
                hint="free memory there, raise the limit, or choose another backup",
            )

    def release(self, name: str) -> None:
        """The standby is gone, or is a VM now whose memory is taken."""
        with self._lock:
            self._promises.pop(name, None)
