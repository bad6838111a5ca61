# SPDX-License-Identifier: Apache-2.0
"""QEMU's monitor: one command, its return value. Two ways lead there: libvirt's and a socket of its own, qmp.py."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import libvirt
import libvirt_qemu
import msgspec

from remusdb.errors import VmError
from remusdb.jsontext import parse_object
from remusdb.printable import printable

Value = TypeVar("Value")

TOLD_MAX_BYTES = 600  # of QEMU's words in an error; its longest are about 300


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
        return returned(command, reply_in(command, libvirt_qemu.qemuMonitorCommand(self._handle, request, 0)))


def reply_in(command: str, text: bytes | str) -> dict[str, Any]:
    """QEMU's reply as libvirt hands it on; VmError for what is no JSON object."""
    try:
        return parse_object(text)
    except ValueError as exc:
        raise VmError(f"{command}: QEMU's answer is not JSON: {printable(str(exc), TOLD_MAX_BYTES)}") from exc


def returned(command: str, reply: object) -> Any:
    """The return value in a reply to `command`; VmError where the reply is an error, or no reply at all."""
    match reply:
        case {"return": value}:
            return value
        case {"error": {"desc": str(said)}}:
            raise VmError(f"QEMU refuses {command}: {printable(said, TOLD_MAX_BYTES)}")
        case _:
            raise VmError(f"{command}: QEMU's answer holds neither a return value nor an error")


# What QEMU returns is not always as QMP has it: a QEMU may be its guest's by now.


def field_of(command: str, value: object, key: str, kind: type[Value]) -> Value:
    """The field `key` of what `command` returned; VmError where it is not there, or of another kind."""
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        raise VmError(f"{command}: QEMU's answer has no `{key}`")
    return found


def objects_in(command: str, value: object) -> list[dict[str, Any]]:
    """What `command` returned, as a list of objects; VmError where it is something else."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise VmError(f"{command}: QEMU's answer is no list of objects")
    return value
