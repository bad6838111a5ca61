# SPDX-License-Identifier: Apache-2.0
"""QEMU's monitor: one command, its return value. Two ways lead there: libvirt's and a socket of its own, private.py."""

from __future__ import annotations

from typing import Any, Protocol

import libvirt
import libvirt_qemu
import msgspec

from remusdb.errors import VmError


class Monitor(Protocol):
    """A way to one QEMU. Blocks until QEMU answers: the caller brings threads and deadlines."""

    def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        """What QEMU returns for one QMP command. VmError with QEMU's own words where it refuses."""


class LibvirtMonitor:
    """The way through libvirt: 2.5 ms a call, and it needs libvirtd. libvirtError where libvirt itself says no."""

    def __init__(self, handle: libvirt.virDomain) -> None:
        self._handle = handle

    def execute(self, command: str, arguments: dict[str, Any]) -> Any:
        """See Monitor."""
        request = msgspec.json.encode({"execute": command, "arguments": arguments}).decode()
        text = libvirt_qemu.qemuMonitorCommand(self._handle, request, 0)
        try:
            reply = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            raise VmError(f"{command}: QEMU's answer is not JSON: {exc}") from exc
        return returned(command, reply)


def returned(command: str, reply: object) -> Any:
    """The return value in a reply to `command`; VmError where the reply is an error, or no reply at all."""
    match reply:
        case {"return": value}:
            return value
        case {"error": {"desc": str(said)}}:
            raise VmError(f"QEMU refuses {command}: {said}")
        case _:
            raise VmError(f"{command}: QEMU's answer holds neither a return value nor an error")
