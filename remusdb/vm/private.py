# SPDX-License-Identifier: Apache-2.0
"""The private QMP socket that `remusdb prepare` gives a VM: 0.25 ms a call where libvirt's monitor takes 2.5."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

from qemu.qmp import QMPError
from qemu.qmp.legacy import QEMUMonitorProtocol

from remusdb.errors import VmError
from remusdb.vm.prepare import CHARDEV
from remusdb.vm.process import command_line, socket_of

GREETING_S = 2.0


class PrivateMonitor:
    """A connection to one VM's own QMP socket. Calls from any thread, one at a time."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        asyncio.set_event_loop(asyncio.new_event_loop())  # not shared with another monitor that this thread made
        try:
            self._qmp = QEMUMonitorProtocol(_greeted(path))
            self._qmp.settimeout(None)
            self._qmp.connect()
        except (OSError, QMPError) as exc:
            raise VmError(f"the private QMP socket {path} does not answer: {exc}") from exc

    def execute(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """One command; QEMU's reply, with `return` or `error`."""
        with self._lock:
            try:
                self._qmp.clear_events()  # every cut makes two, and nobody reads them here
                reply: dict[str, Any] = dict(self._qmp.cmd_raw(command, arguments))
            except (OSError, QMPError) as exc:
                raise VmError(f"{command}: the private QMP socket failed: {exc}") from exc
            return reply

    def close(self) -> None:
        """End the connection; QEMU then listens again."""
        with contextlib.suppress(OSError, QMPError, RuntimeError):  # RuntimeError: a command still hangs
            self._qmp.close()


def _greeted(path: Path) -> socket.socket:
    """A connection that QEMU has taken up: it serves one at a time, a second one would wait for ever."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(GREETING_S)
        sock.connect(str(path))
        if not sock.recv(1, socket.MSG_PEEK):
            raise OSError("closed at once")
        sock.settimeout(None)
    except OSError:
        sock.close()
        raise
    return sock


def private_monitor(pid: int) -> PrivateMonitor | None:
    """The private monitor of this QEMU, if it was started with one and it answers."""
    path = socket_of(CHARDEV, command_line(pid))
    if path is None:
        return None
    try:
        return PrivateMonitor(path)
    except VmError:
        return None  # a fallback that status shows: `monitor` is then libvirt
