# SPDX-License-Identifier: Apache-2.0
"""A network namespace with a bridge, a VM's tap and a wire, all in the hands of the test.

The test holds both taps' descriptors: what it writes to `vm` is what the VM sends, what it reads from `wire` is
what left the host. The namespace has no name and vanishes with the last descriptor in it. Nothing in it speaks
by itself, so every frame on the wire was let out by the gate.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from socket import inet_aton

from remusdb.net.links import Links
from remusdb.net.tuntap import FRAME_MAX_BYTES, VNET_HEADER_BYTES, open_tap

VM_MAC, PEER_MAC = "52:54:00:12:34:56", "52:54:00:aa:bb:cc"
TAP_MAC = "fe:54:00:12:34:56"
QUIET_S = 0.15  # long enough for a frame that should not come
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def own_namespace() -> Iterator[None]:
    """This thread, and what it starts, in a new network namespace."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _check(_libc.unshare(_CLONE_NEWNET))
        yield
    finally:
        enter(before)
        os.close(before)


def enter(namespace_fd: int) -> None:
    """Move this thread to the namespace behind the descriptor."""
    _check(_libc.setns(namespace_fd, _CLONE_NEWNET))


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "namespaces need root")


def sh(command: str) -> str:
    """Run a shell command that must succeed."""
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True, timeout=20).stdout


def silence(name: str) -> None:
    """No IPv6 of the link's own."""
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")


class Port:
    """A tap whose other side the test plays."""

    def __init__(self, name: str, mac: str, master: str = "br0") -> None:
        self.name = name
        self.fd = open_tap(name, persist=False)
        silence(name)
        into = f"master {master}" if master else ""
        sh(f"ip link set {name} address {mac} txqueuelen 20000 {into} up")

    def send(self, frame: bytes, header: bytes = bytes(VNET_HEADER_BYTES)) -> None:
        """One frame from the other side."""
        os.write(self.fd, header + frame)

    def receive(self, most: int, timeout_s: float = 2.0) -> list[bytes]:
        """Up to `most` frames; returns early once there are that many."""
        frames: list[bytes] = []
        deadline = time.monotonic() + timeout_s
        while len(frames) < most:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                break
            with contextlib.suppress(BlockingIOError):
                while len(frames) < most:
                    frames.append(os.read(self.fd, FRAME_MAX_BYTES)[VNET_HEADER_BYTES:])
        return frames

    def silent(self, for_s: float = QUIET_S) -> bool:
        """Whether nothing comes."""
        return self.receive(1, for_s) == []

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


class Lab:
    """Bridge `br0` with the VM's tap and the wire."""

    def __init__(self, tap: str = "vnet0") -> None:
        sh("ip link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0")
        silence("br0")
        sh("ip link set br0 up")
        self.wire = Port("lan0", "02:00:00:00:00:01")
        self.vm = Port(tap, TAP_MAC)

    def close(self) -> None:
        self.vm.close()
        self.wire.close()

    def snapshot(self) -> dict[str, str]:
        """Everything about links, qdiscs and filters that `remove` must leave as it was."""
        tap = self.vm.name
        asked = ["ip -d link show", "ip addr show", "tc qdisc show", "bridge -d link show", "bridge vlan show"]
        asked += [f"tc filter show dev {tap} ingress", f"tc filter show dev {tap} egress"]
        return {command: _settled(sh(command)) for command in asked}

    def devices(self) -> set[str]:
        """Names of all links."""
        return {line.split(":")[1].strip().split("@")[0] for line in sh("ip -o link show").splitlines()}


def _settled(text: str) -> str:
    """Without what moves by itself: timers, and the state of a link whose carrier the kernel has yet to note."""
    return re.sub(r"_timer +[\d.]+", "_timer", text).replace(" state UNKNOWN ", " state UP ")


@contextlib.contextmanager
def lab(tap: str = "vnet0") -> Iterator[Lab]:
    """A lab in a namespace of its own."""
    with own_namespace():
        made = Lab(tap)
        try:
            yield made
        finally:
            made.close()


def index_of(name: str) -> int:
    """Ifindex of a link."""
    with Links() as links:
        return links.get(name).index


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def frame(number: int, ethertype: int = 0x88B5, size: int = 60, to: str = PEER_MAC, vlan: int | None = None) -> bytes:
    """A numbered frame from the VM."""
    return _frame(mac_bytes(to), mac_bytes(VM_MAC), number, ethertype, size, vlan)


def inbound_frame(number: int, ethertype: int = 0x88B5, size: int = 60) -> bytes:
    """A numbered frame to the VM."""
    return _frame(mac_bytes(VM_MAC), mac_bytes(PEER_MAC), number, ethertype, size, None)


def _frame(to: bytes, source: bytes, number: int, ethertype: int, size: int, vlan: int | None) -> bytes:
    tag = struct.pack("!HH", 0x8100, vlan) if vlan is not None else b""
    head = to + source + tag + struct.pack("!H", ethertype)
    body = struct.pack("!Q", number) + bytes(size - len(head) - 8)
    return head + body


def ip_frame(version: int, to: str = PEER_MAC) -> bytes:
    """A UDP packet of the VM, well formed: br_netfilter drops what is not."""
    udp = struct.pack("!HHHH", 1111, 2222, 8 + 32, 0) + bytes(32)
    if version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0) + bytes((10, 0, 0, 2, 10, 0, 0, 1))
        total = sum(struct.unpack("!10H", head))
        total = (total & 0xFFFF) + (total >> 16)
        head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
        return mac_bytes(to) + mac_bytes(VM_MAC) + b"\x08\x00" + head + udp
    address = bytes.fromhex("fd000000000000000000000000000002")
    head = struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + address + address[:-1] + b"\x01"
    return mac_bytes(to) + mac_bytes(VM_MAC) + b"\x86\xdd" + head + udp


def arp_frame(sender_ip: str, target_ip: str, source: str = VM_MAC) -> bytes:
    """A broadcast ARP request of the VM."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac_bytes(source) + inet_aton(sender_ip)
    body += bytes(6) + inet_aton(target_ip)
    return b"\xff" * 6 + mac_bytes(source) + b"\x08\x06" + body + bytes(18)


def number_of(received: bytes) -> int:
    """The number in a frame."""
    return int(struct.unpack_from("!Q", received, 18 if received[12:14] == b"\x81\x00" else 14)[0])
