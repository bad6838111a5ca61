# SPDX-License-Identifier: Apache-2.0
"""TCP segments as whole Ethernet frames: made in the name of one end of a connection, and read.

Pure. Nothing but plain headers is made; of what is read only that which a reset needs to know.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
_ETH_IPV4, _ETH_IPV6, _ETH_VLAN = 0x0800, 0x86DD, 0x8100
_TCP = 6
_HOPS = 64
_FRAME_LEAST_BYTES = 60


@dataclass(frozen=True)
class End:
    """One end of a connection: MAC and IP address as bytes (6; 4 or 16), and port."""

    mac: bytes
    address: bytes
    port: int


@dataclass(frozen=True)
class Segment:
    """A TCP segment that was read: whose it is, and its numbers."""

    source: bytes
    source_port: int
    target: bytes
    target_port: int
    seq: int
    ack: int
    flags: int


def build(source: End, target: End, vlan: int | None, seq: int, ack: int, flags: int, data: bytes = b"") -> bytes:
    """The frame of one segment, checksums and all."""
    tcp = struct.pack("!HHIIBBHHH", source.port, target.port, seq, ack, 5 << 4, flags, 0, 0, 0) + data
    pseudo = source.address + target.address
    if len(source.address) == 4:
        pseudo += struct.pack("!BBH", 0, _TCP, len(tcp))
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, _HOPS, _TCP, 0)
        checked = checksum(head + source.address + target.address)
        ip = head[:10] + struct.pack("!H", checked) + source.address + target.address
        ethertype = _ETH_IPV4
    else:
        pseudo += struct.pack("!II", len(tcp), _TCP)
        ip = struct.pack("!IHBB", 6 << 28, len(tcp), _TCP, _HOPS) + source.address + target.address
        ethertype = _ETH_IPV6
    tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
    tag = b"" if vlan is None else struct.pack("!HH", _ETH_VLAN, vlan)
    frame = target.mac + source.mac + tag + struct.pack("!H", ethertype) + ip + tcp
    return frame.ljust(_FRAME_LEAST_BYTES, b"\0")


def read(frame: bytes) -> Segment | None:
    """What is in a frame without a VLAN tag (the kernel has taken it off); None for what is no TCP segment."""
    try:
        (ethertype,) = struct.unpack_from("!H", frame, 12)
        if ethertype == _ETH_IPV4:
            if frame[23] != _TCP or struct.unpack_from("!H", frame, 20)[0] & 0x1FFF:
                return None
            source, target, at = frame[26:30], frame[30:34], 14 + 4 * (frame[14] & 15)
        elif ethertype == _ETH_IPV6 and frame[20] == _TCP:
            source, target, at = frame[22:38], frame[38:54], 54
        else:
            return None
        source_port, target_port, seq, ack, _length, flags = struct.unpack_from("!HHIIBB", frame, at)
    except (struct.error, IndexError):
        return None
    return Segment(source, source_port, target, target_port, seq, ack, flags)


def checksum(data: bytes) -> int:
    """Of the Internet (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
