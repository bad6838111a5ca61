# SPDX-License-Identifier: Apache-2.0
"""How long the VM really stood still: QEMU's own time stamps of its STOP and RESUME events.

Owns the process's libvirt event loop (one thread; libvirt wants it registered before the first connection). What
the caller can time, from its call to the end of the device state, includes libvirt's way to QEMU, when the VM runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import libvirt
import libvirt_qemu

from remusdb.errors import VmError
from remusdb.threads import vital
from remusdb.vm.domain import Domain

_loop: threading.Thread | None = None
_start = threading.Lock()


def start_event_loop() -> None:
    """Run libvirt's event loop in a thread of this process. Once, before `libvirt.open`; again is harmless."""
    global _loop
    with _start:
        if _loop is None:
            libvirt.virEventRegisterDefaultImpl()
            _loop = vital(_run, name="libvirt-events")


def _run() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


class PauseMeter:
    """Calls `note(pause_ms)` after every stop of the domain, from the event loop's thread."""

    def __init__(self, connection: libvirt.virConnect, domain: Domain, note: Callable[[float], None]) -> None:
        self._domain = domain
        self._note = note
        self.renew(connection)

    def renew(self, connection: libvirt.virConnect) -> None:
        """Watch over this connection from now on: a registration ends with its connection."""
        self._connection = connection
        self._stopped_at: float | None = None
        try:
            self._ids = [
                libvirt_qemu.qemuMonitorEventRegister(connection, self._domain.handle, name, self._on_event, None, 0)
                for name in ("STOP", "RESUME")
            ]
        except libvirt.libvirtError as exc:
            raise VmError(f"QEMU's events cannot be watched: {exc}") from exc

    def close(self) -> None:
        """Watch no longer."""
        for number in self._ids:
            try:
                libvirt_qemu.qemuMonitorEventDeregister(self._connection, number)
            except libvirt.libvirtError:
                return  # the connection is gone, and the registration with it

    def _on_event(self, _c: Any, _d: Any, event: str, seconds: int, micros: int, _details: Any, _o: Any) -> None:
        at = seconds + micros / 1e6
        if event == "STOP":
            self._stopped_at = at
        elif self._stopped_at is not None:
            self._note(1000 * (at - self._stopped_at))
            self._stopped_at = None
