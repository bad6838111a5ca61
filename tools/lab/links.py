# SPDX-License-Identifier: Apache-2.0
"""Namespaces and links, with iproute2; and the one link operation that must be fast, without it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess

from tools.lab.paths import NETNS

_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_libc = ctypes.CDLL(None, use_errno=True)


def ip(commands: str, *, netns: str | None = None) -> None:
    """Runs `ip` commands, one a line, in one process. Raises RuntimeError with ip's own words."""
    prefix = ["ip", "-netns", netns] if netns else ["ip"]
    done = subprocess.run([*prefix, "-batch", "-"], input=commands, text=True, capture_output=True, timeout=30)
    if done.returncode:
        raise RuntimeError(f"ip in {netns or 'root'}: {done.stderr.strip()}\n{commands}")


def socket_in(netns: str, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM, proto: int = 0) -> socket.socket:
    """A socket that belongs to namespace `netns`; the calling thread stays where it is."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    other = os.open(NETNS / netns, os.O_RDONLY)
    try:
        _setns(other)
        try:
            return socket.socket(family, kind, proto)
        finally:
            _setns(own)
    finally:
        os.close(own)
        os.close(other)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class LinkSwitch:
    """Takes one link up and down by ioctl, on a socket opened beforehand: no process is started."""

    def __init__(self, netns: str, ifname: str) -> None:
        self._name = ifname.encode()
        self._socket = socket_in(netns)

    def set(self, up: bool) -> None:
        """Raises OSError when the link is gone."""
        request = struct.pack("16sH22x", self._name, 0)
        flags = struct.unpack_from("H", fcntl.ioctl(self._socket, _SIOCGIFFLAGS, request), 16)[0]
        flags = flags | _IFF_UP if up else flags & ~_IFF_UP
        fcntl.ioctl(self._socket, _SIOCSIFFLAGS, struct.pack("16sH22x", self._name, flags))

    def close(self) -> None:
        """Let go of the socket; the link stays as it is."""
        self._socket.close()
