# SPDX-License-Identifier: Apache-2.0
"""Frames of a TCP server in a guest, as its tap hands them out, and what a PostgreSQL server says in them."""

from __future__ import annotations

import socket
import struct

GUEST, CLIENT = "10.0.0.1", "10.0.0.2"
GUEST_MAC, CLIENT_MAC = bytes.fromhex("525400123456"), bytes.fromhex("525400aabbcc")
FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
MOD = 1 << 32


def frame(
    payload: bytes = b"",
    *,
    seq: int = 0,
    ack: int = 77,
    flags: int = ACK,
    port: int = 5432,
    client_port: int = 40000,
    dscp: int = 0,
    ipv6: bool = False,
    vlan: int | None = None,
    gso: int = 0,
    padding: int = 0,
) -> bytes:
    """With virtio_net_hdr; checksums are left out, as a guest's offloads leave them unfinished."""
    tcp = struct.pack("!HHIIBBHHH", port, client_port, seq % MOD, ack % MOD, 5 << 4, flags, 500, 0, 0) + payload
    if ipv6:
        ends = socket.inet_pton(socket.AF_INET6, "fd00::1") + socket.inet_pton(socket.AF_INET6, "fd00::2")
        ip = struct.pack("!IHBB", 6 << 28 | dscp << 22, len(tcp), 6, 64) + ends
    else:
        ends = socket.inet_aton(GUEST) + socket.inet_aton(CLIENT)
        ip = struct.pack("!BBHHHBBH", 0x45, dscp << 2, 20 + len(tcp), 0, 0x4000, 64, 6, 0) + ends
    tag = b"" if vlan is None else struct.pack("!HH", 0x8100, vlan)
    kind = struct.pack("!H", 0x86DD if ipv6 else 0x0800)
    return bytes([0, gso]) + bytes(8) + CLIENT_MAC + GUEST_MAC + tag + kind + ip + tcp + bytes(padding)


def message(kind: str, body: bytes = b"") -> bytes:
    """One of PostgreSQL's protocol."""
    return kind.encode() + struct.pack("!I", 4 + len(body)) + body


def complete(tag: str) -> bytes:
    """CommandComplete."""
    return message("C", tag.encode() + b"\0")


def ready(state: str) -> bytes:
    """ReadyForQuery."""
    return message("Z", state.encode())


GREETING = message("R", bytes(4)) + message("S", b"a\0b\0") + message("K", bytes(8)) + ready("I")
BEGIN, COMMIT = complete("BEGIN") + ready("T"), complete("COMMIT") + ready("I")
CHAIN = complete("COMMIT") + ready("T")
UPDATE = complete("UPDATE 1") + ready("T")
ROWS = message("T", bytes(30)) + message("D", bytes(40)) * 3 + complete("SELECT 3") + ready("T")
ALONE = message("T", bytes(30)) + message("D", bytes(40)) + complete("SELECT 1") + ready("I")
FAILED = message("E", b"SERROR\0\0") + ready("E")
