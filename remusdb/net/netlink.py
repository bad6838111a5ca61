# SPDX-License-Identifier: Apache-2.0
"""A netlink route socket for requests that we build ourselves.

pyroute2 makes links for us (`links.py`). Its tc part has no classic BPF, turns an unknown plug action silently
into BUFFER and takes about a millisecond a call, while the plug gate asks with the VM stopped: those requests
go through here. Every request waits for the kernel's acknowledgement, so it took effect when it returns.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from remusdb.errors import GateError

REQUEST, _ACK, ECHO, DUMP = 0x001, 0x004, 0x008, 0x300
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400
NESTED = 0x8000

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_ACK_TLVS = 0x200
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_HEADER = struct.Struct("=IHHII")
_CODE = struct.Struct("=i")
MAX_ERRNO = 4095  # include/linux/err.h


class KernelError(GateError):
    """The kernel refused a netlink request; `errno` says why."""

    def __init__(self, what: str, code: int, said: str) -> None:
        missing = code in (errno.ENOENT, errno.EOPNOTSUPP)
        super().__init__(
            f"{what} failed: {said or os.strerror(code)}",
            hint="the gate needs cls_bpf, act_mirred and clsact, or sch_plug and ifb: load them" if missing else "",
        )
        self.errno = code


@dataclass(frozen=True)
class Reply:
    """One message of the kernel's answer: a fixed part and attributes."""

    fixed: tuple[int, ...]
    attributes: dict[int, bytes]


class Netlink:
    """Asks, and waits for the answer."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.bind((0, 0))
        self._sequence = itertools.count(1)

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def ask(self, what: str, kind: int, flags: int, body: bytes, fixed: struct.Struct) -> list[Reply]:
        """Send one request (`what` names it in errors) and collect its answer; `fixed` is its leading struct."""
        sequence = next(self._sequence)
        length = _HEADER.size + len(body)
        self._socket.send(_HEADER.pack(length, kind, REQUEST | _ACK | flags, sequence, 0) + body)
        found: list[Reply] = []
        while True:
            for reply_kind, reply_flags, asked, payload in messages(self._socket.recv(65536)):
                if asked != sequence:
                    continue
                if reply_kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    raise_if_error(what, reply_flags, payload)
                    return found
                found.append(Reply(leading(fixed, payload), attributes(payload, fixed.size)))


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to 4 bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def text(kind: int, value: str) -> bytes:
    """One attribute that holds a string."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes, offset: int) -> dict[int, bytes]:
    """The attributes from `offset` on, by kind."""
    found = {}
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += length + (-length % 4)
    return found


def leading(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    """The fields at the beginning of `data`; GateError where they are not all there."""
    if len(data) < layout.size:
        raise GateError(f"the kernel's netlink message has {len(data)} bytes where {layout.size} were expected")
    return layout.unpack_from(data)


def raise_if_error(what: str, flags: int, payload: bytes) -> None:
    """KernelError where the answer is a refusal."""
    (code,) = leading(_CODE, payload)
    if code == 0:
        return
    if not -MAX_ERRNO <= code < 0:
        raise GateError(f"the kernel's netlink answer has the error number {code}, which is none")
    said = attributes(payload, 4 + _HEADER.size).get(1, b"") if flags & _ACK_TLVS else b""
    raise KernelError(what, -code, said.rstrip(b"\0").decode(errors="replace"))


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(kind, flags, sequence, payload) of every message received. GateError for one shorter than its head."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _port = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            raise GateError(f"the kernel's netlink message says that it has {length} bytes")
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += length + (-length % 4)
