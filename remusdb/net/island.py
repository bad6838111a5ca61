# SPDX-License-Identifier: Apache-2.0
"""A network namespace with nothing in it but a VM's taps and a probe.

Owns the namespace, which has no name: one thread is in it, and the kernel removes it, with all links in it, when
that thread ends, however this process dies. Invariant: no link leads out of it, so nothing of the VM gets out.

    new ──adopt(taps)──▶ probing ──close()──▶ gone
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from remusdb.deadline import Deadline, poll_until
from remusdb.errors import GateError
from remusdb.net.addresses import AddressWatch
from remusdb.net.links import Links

BRIDGE = "lan"  # the VM's interfaces and the probe are on it; the name is seen in the island alone
ANSWER_S = 0.3
_CLONE_NEWNET = 0x40000000
_DISCARD_PORT = 9

Args = ParamSpec("Args")
Result = TypeVar("Result")

_libc = ctypes.CDLL(None, use_errno=True)


class Island:
    """Where a VM may speak without being heard."""

    def __init__(self) -> None:
        """Make it, empty. GateError without the privilege."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="island")
        self._watches: list[AddressWatch] = []
        try:
            self._namespace = self._inside(_leave)
        except GateError:
            self._thread.shutdown()
            raise
        try:
            self._inside(_make_bridge)
        except GateError:
            self.close()
            raise

    def adopt(self, taps: Mapping[str, str]) -> None:
        """Move these taps (name -> the guest's MAC) of this thread's namespace here. Before the VM runs."""
        with Links() as links:
            for tap in taps:
                links.move(tap, self._namespace)
        self._watches = self._inside(_connect, taps)

    def addresses(self) -> list[str]:
        """The addresses that the guest has shown here."""
        return [address for watch in self._watches for address in watch.addresses()]

    def answers(self, address: str) -> str:
        """The MAC that answers for this address (ARP or neighbour discovery) within ANSWER_S, or nothing."""
        return self._inside(_answers, address)

    def connect(self, address: str, port: int, timeout_s: float) -> None:
        """Open a TCP connection and close it again; OSError when that fails."""
        self._inside(_open_tcp, address, port, timeout_s)

    def close(self) -> None:
        """Let go of it; the kernel removes what is left in it. Once."""
        for watch in self._watches:
            watch.close()
        os.close(self._namespace)
        self._thread.shutdown(wait=True)

    def _inside(self, call: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
        return self._thread.submit(call, *args, **kwargs).result()


def neighbour_of(address: str) -> str:
    """An address next to this one: never a network's or broadcast address, and in the same network down to a /30."""
    given = ipaddress.ip_address(address)
    step = {0: 1, 1: 1, 2: -1, 3: -1}[int(given) % 4]
    return str(given + step)


def _leave() -> int:
    """Take the calling thread, and it alone, into a namespace of its own; a descriptor of that."""
    if _libc.unshare(_CLONE_NEWNET):
        code = ctypes.get_errno()
        raise GateError(f"no network namespace can be made: {os.strerror(code)}", hint="run as root")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _make_bridge() -> None:
    with Links() as links:
        links.add_bridge(BRIDGE)


def _connect(taps: Mapping[str, str]) -> list[AddressWatch]:
    with Links() as links:
        for tap in taps:
            links.join(tap, BRIDGE)
        return [AddressWatch(tap, links.get(tap).mac, mac) for tap, mac in taps.items()]


def _answers(address: str) -> str:
    with Links() as links:
        links.add_peer(BRIDGE, neighbour_of(address), address)
        with _socket(address, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.sendto(b"", _target(address, _DISCARD_PORT))  # has the kernel ask for the MAC
        return poll_until(lambda: links.neighbour(BRIDGE, address), Deadline.after(ANSWER_S), 0.02)


def _open_tcp(address: str, port: int, timeout_s: float) -> None:
    with Links() as links:
        links.add_peer(BRIDGE, neighbour_of(address), address)
    with _socket(address, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect(_target(address, port))


def _socket(address: str, kind: socket.SocketKind) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)


def _target(address: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """A link-local address means nothing without its link."""
    return (address, port, 0, socket.if_nametoindex(BRIDGE)) if ":" in address else (address, port)
