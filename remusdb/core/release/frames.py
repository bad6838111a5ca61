# SPDX-License-Identifier: Apache-2.0
"""A guest's frames as the gate has them, told apart; and a connection, as COMMIT names it to the backup.

A frame begins with `virtio_net_hdr` (net/tuntap.py) and may be unsegmented, up to 64 KiB. What is not plain is not told
apart, so it waits: several VLAN tags, IP options, extension headers, fragments, lengths that contradict each other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

FLOWS_MAX = 1024  # connections of one interface that are known at a time
FIN, SYN, RST, ACK, URG = 0x01, 0x02, 0x04, 0x10, 0x20
_VNET = 10  # bytes of virtio_net_hdr; see net/tuntap.py
_PLAIN_GSO = (0, 1, 4)  # VIRTIO_NET_HDR_GSO_NONE, _TCPV4, _TCPV6
_GSO_ECN = 0x80
_IPV4, _IPV6, _VLAN = 0x0800, 0x86DD, 0x8100
_FRAGMENT = 0x3FFF  # more fragments, or an offset
_TCP = 6
_PORTS_SEQ_ACK = struct.Struct("!HHIIBB")
_SHORT = struct.Struct("!H")
_FLOW = struct.Struct("!BxH16sH16sH6s6sII")
_NO_VLAN = 0xFFFF
FLOWS_MAX_BYTES = FLOWS_MAX * _FLOW.size


class Segment(NamedTuple):
    """A TCP segment of the guest. `key`: its addresses and ports, as they stand in the headers (12 or 36 bytes).

    `at`: where its payload of `size` bytes begins in the frame. `dscp`: of its IP header.
    """

    key: bytes
    port: int
    seq: int
    ack: int
    flags: int
    at: int
    size: int
    dscp: int
    vlan: int | None


@dataclass(frozen=True, slots=True)
class FlowKey:
    """Whose connection: addresses as bytes (4 or 16), and ports."""

    guest: bytes
    guest_port: int
    client: bytes
    client_port: int


@dataclass(frozen=True, slots=True)
class OpenFlow:
    """A connection that was inside a transaction at a cut, and what is needed to break it.

    `guest_mac`, `client_mac`: of the last frame (the client's may be a router's). `vlan`: its tag, if it had one.
    `next_seq`: the guest's next sequence number. `last_ack`: the last one it acknowledged: the client's next, or less.
    """

    key: FlowKey
    guest_mac: bytes
    client_mac: bytes
    vlan: int | None
    next_seq: int
    last_ack: int

    def pack(self) -> bytes:
        """Of one size."""
        key = self.key
        vlan = _NO_VLAN if self.vlan is None else self.vlan
        ends = key.guest, key.guest_port, key.client, key.client_port
        return _FLOW.pack(len(key.guest), vlan, *ends, self.guest_mac, self.client_mac, self.next_seq, self.last_ack)

    @staticmethod
    def unpack(packed: bytes) -> OpenFlow:
        """ValueError for what `pack` does not make."""
        try:
            size, vlan, guest, guest_port, client, client_port, *rest = _FLOW.unpack(packed)
        except struct.error as exc:
            raise ValueError(f"not a connection: {exc}") from exc
        if size not in (4, 16) or any(guest[size:]) or any(client[size:]):
            raise ValueError("not a connection: its addresses are of no length that there is")
        if rest[0][0] & 1:
            raise ValueError("not a connection: a guest's address cannot be a group's")
        key = FlowKey(guest[:size], guest_port, client[:size], client_port)
        return OpenFlow(key, rest[0], rest[1], None if vlan == _NO_VLAN else vlan, rest[2], rest[3])


def unpack_flows(packed: bytes) -> list[OpenFlow]:
    """What is packed one after the other. ValueError for anything else, and for too many."""
    if len(packed) % _FLOW.size or len(packed) > FLOWS_MAX_BYTES:
        raise ValueError(f"{len(packed)} bytes are no list of connections")
    return [OpenFlow.unpack(packed[at : at + _FLOW.size]) for at in range(0, len(packed), _FLOW.size)]


def flow_key(key: bytes) -> FlowKey:
    """Of a segment's key."""
    size = (len(key) - 4) // 2
    guest_port, client_port = struct.unpack_from("!HH", key, 2 * size)
    return FlowKey(key[:size], guest_port, key[size : 2 * size], client_port)


def segment_of(frame: bytes) -> Segment | None:
    """What the frame is, or None where that is not plain TCP."""
    try:
        return _segment(frame)
    except (struct.error, IndexError):
        return None


def _segment(frame: bytes) -> Segment | None:
    if frame[1] & ~_GSO_ECN not in _PLAIN_GSO or frame[_VNET + 6] & 1:  # a source cannot be a group's
        return None
    (kind,) = _SHORT.unpack_from(frame, _VNET + 12)
    at, vlan = _VNET + 14, None
    if kind == _VLAN:
        (vlan,) = _SHORT.unpack_from(frame, at)
        (kind,) = _SHORT.unpack_from(frame, at + 2)
        at += 4
    if kind == _IPV4:
        if frame[at] != 0x45 or frame[at + 9] != _TCP or _SHORT.unpack_from(frame, at + 6)[0] & _FRAGMENT:
            return None
        end = at + _SHORT.unpack_from(frame, at + 2)[0]
        dscp, addresses, tcp = frame[at + 1] >> 2, frame[at + 12 : at + 20], at + 20
    elif kind == _IPV6:
        if frame[at] >> 4 != 6 or frame[at + 6] != _TCP:
            return None
        end = at + 40 + _SHORT.unpack_from(frame, at + 4)[0]
        dscp, addresses, tcp = _SHORT.unpack_from(frame, at)[0] >> 6 & 63, frame[at + 8 : at + 40], at + 40
    else:
        return None
    port, _client_port, seq, ack, length, flags = _PORTS_SEQ_ACK.unpack_from(frame, tcp)
    payload = tcp + (length >> 4) * 4
    if length < 0x50 or not payload <= end <= len(frame):
        return None
    key = addresses + frame[tcp : tcp + 4]
    return Segment(key, port, seq, ack, flags, payload, end - payload, dscp, vlan)
