# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells about links as they come, change and go."""

from __future__ import annotations

import logging
import select
import socket
import struct
from dataclasses import dataclass
from typing import Self

from remusdb.errors import GateError
from remusdb.net.netlink import attributes, leading, messages

log = logging.getLogger(__name__)

_NEWLINK, _DELLINK = 16, 17
_GROUP_LINK = 1  # RTMGRP_LINK
_IFINFO = struct.Struct("=BxHiII")
_IFNAME, _MASTER, _LINKINFO, _INFO_KIND = 3, 10, 18, 1
_BUFFER_BYTES = 1 << 20  # what may wait while this process does not run
_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class LinkNews:
    """A link was made or changed, or is gone. `master`: ifindex of the bridge that it is on, 0 for none."""

    name: str
    kind: str  # tun, macvtap, veth ..., empty for hardware
    gone: bool
    master: int


class LinkNewsSocket:
    """Hears of every link of this network namespace from its making on."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            self._socket.bind((0, _GROUP_LINK))
        except OSError as exc:
            self._socket.close()
            raise GateError(f"the kernel's news of links cannot be read: {exc.strerror}", hint="run as root") from exc

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def wait(self, timeout_s: float, wake: int) -> list[LinkNews] | None:
        """What came, as soon as any does or descriptor `wake` is readable; None where the kernel dropped some."""
        ready = select.select([self._socket.fileno(), wake], [], [], timeout_s)[0]
        if self._socket.fileno() not in ready:
            return []
        try:
            data = self._socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:  # ENOBUFS
            return None
        try:
            return parse_news(data)
        except GateError as exc:  # as good as dropped
            log.warning("news of links: %s", exc)
            return None


def parse_news(data: bytes) -> list[LinkNews]:
    """What the kernel said in one piece. GateError for what is no netlink message."""
    told = [(kind, payload) for kind, _, _, payload in messages(data) if kind in (_NEWLINK, _DELLINK)]
    # Of a bridge's port the kernel tells also as a port (AF_BRIDGE): one that leaves its bridge is not gone.
    return [_news(kind, payload) for kind, payload in told if leading(_IFINFO, payload)[0] == socket.AF_UNSPEC]


def _news(kind: int, payload: bytes) -> LinkNews:
    found = attributes(payload, _IFINFO.size)
    info = attributes(found.get(_LINKINFO, b""), 0)
    master = int.from_bytes(found.get(_MASTER, b"\0"), "little")
    return LinkNews(_text(found.get(_IFNAME, b"")), _text(info.get(_INFO_KIND, b"")), kind == _DELLINK, master)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
