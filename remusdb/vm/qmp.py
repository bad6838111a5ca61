# SPDX-License-Identifier: Apache-2.0
"""The private QMP socket that `remusdb prepare` gives a VM: 0.25 ms a call where libvirt's monitor takes 2.5.

QMP is one JSON object a line: QEMU greets, `qmp_capabilities` is the first command, and each reply carries the
id of its command. Events come in between; nobody reads them here (every cut makes two). What QEMU sends is bounded
in length and never believed: a stream that breaks the rules ends the connection.
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

from remusdb.control.lines import LineChannel
from remusdb.deadline import Deadline
from remusdb.errors import BadFrame, VmError
from remusdb.safefiles import require_peer
from remusdb.vm.monitor import returned
from remusdb.vm.prepare import CHARDEV
from remusdb.vm.process import command_line, socket_of

GREETING_S = 2.0  # QEMU serves one connection at a time: on a second one it is silent


class PrivateMonitor:
    """A connection to one VM's own QMP socket. Calls from any thread, one at a time."""

    def __init__(self, path: Path, pid: int, greeting_s: float = GREETING_S) -> None:
        """VmError where QEMU, process `pid`, has not taken the connection up, greeting and all, within `greeting_s`.

        The path is QEMU's own word (its command line): whoever else listens there is told nothing.
        """
        self._lock = threading.Lock()
        self._id = 0
        deadline = Deadline.after(greeting_s)
        sock = socket.socket(socket.AF_UNIX)
        self._channel = LineChannel(sock)
        try:
            sock.settimeout(greeting_s)
            sock.connect(str(path))
            require_peer(sock, pid)
            if "QMP" not in self._receive(deadline):
                raise BadFrame("it does not greet as QEMU does")
            returned("qmp_capabilities", self._ask("qmp_capabilities", {}, deadline))
            sock.settimeout(None)
        except (OSError, BadFrame, VmError) as exc:
            self._channel.close()
            raise VmError(f"the private QMP socket {path} does not answer: {exc}") from exc

    def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        """See Monitor. VmError also where the connection failed; it does not come back."""
        with self._lock:
            try:
                reply = self._ask(command, arguments, None)
            except (OSError, BadFrame) as exc:
                self._channel.close()  # a reply that comes late must not be taken for that of another command
                raise VmError(f"{command}: the private QMP socket failed: {exc}") from exc
        return returned(command, reply)

    def close(self) -> None:
        """End the connection; QEMU then listens again. A command that hangs in it fails."""
        self._channel.close()

    def _ask(self, command: str, arguments: dict[str, Any], deadline: Deadline | None) -> dict[str, Any]:
        self._id += 1
        self._channel.send({"execute": command, "arguments": arguments, "id": self._id})
        while "event" in (reply := self._receive(deadline)):
            pass
        if reply.get("id") != self._id:  # also where QEMU could not read the command: it has no id for its error then
            raise BadFrame("QEMU sent what is neither an event nor the reply to the command")
        return reply

    def _receive(self, deadline: Deadline | None) -> dict[str, Any]:
        message = self._channel.receive(deadline)
        if message is None:
            raise BadFrame("QEMU closed it")
        return message


def private_monitor(pid: int) -> PrivateMonitor | None:
    """The private monitor of this QEMU, if it was started with one and it answers."""
    path = socket_of(CHARDEV, command_line(pid))
    if path is None:
        return None
    try:
        return PrivateMonitor(path, pid)
    except VmError:
        return None  # a fallback that status shows: `monitor` is then libvirt
