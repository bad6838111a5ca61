# SPDX-License-Identifier: Apache-2.0
"""The guest's own addresses, learned from what it sends; a backup announces them when it takes over.

Owns a packet socket on the VM's tap with a kernel filter (`bpf.address_frames`): ARP and neighbour discovery
alone. IP sources would show addresses that the guest merely routes for. It is read only when someone asks, so the
frames' own path costs nothing; what overflows its buffer is lost without harm, since guests repeat themselves.
Only frames with the guest's own MAC count. Bounded: at most `MOST` addresses, the first ones.
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct

from remusdb.errors import GateError
from remusdb.net.bpf import SNAP_LENGTH, address_frames

MOST = 64
_ETH_P_ALL = 3
_SO_ATTACH_FILTER = 26
_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_NEIGHBOUR_ADVERT = 136


class AddressWatch:
    """Addresses that the VM behind tap `tap` uses; `guest_mac` may be unknown (None)."""

    def __init__(self, tap: str, tap_mac: str, guest_mac: str | None) -> None:
        self._found: dict[str, None] = {}
        self._mac = _guest_mac(tap_mac, guest_mac)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        program = ctypes.create_string_buffer(address_frames())
        count = (len(program) - 1) // 8
        try:
            # Only what the tap receives, which is what the VM sends.
            self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            filter_at = struct.pack("HL", count, ctypes.addressof(program))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_at)
            self._socket.bind((tap, _ETH_P_ALL))
            self._socket.setblocking(False)
        except OSError as error:
            self._socket.close()
            raise GateError(f"cannot watch {tap} for addresses: {error}", hint="run as root") from error

    def addresses(self) -> tuple[str, ...]:
        """Everything learned so far."""
        try:
            while True:
                self._learn(self._socket.recv(SNAP_LENGTH))
        except OSError:  # nothing more there, or the tap is gone: what was learned still holds
            return tuple(self._found)

    def close(self) -> None:
        """Watch no longer; what was learned is gone."""
        self._socket.close()

    def _learn(self, frame: bytes) -> None:
        address = own_address(frame)
        if address is None or len(self._found) >= MOST:
            return
        source = frame[6:12]
        # Where the tap's name tells nothing of the guest, the first sender is the guest.
        self._mac = self._mac or source
        if source[1:] == self._mac[1:]:
            self._found[address] = None


def own_address(frame: bytes) -> str | None:
    """The sender's IP address, if this frame shows one: ARP or a neighbour message."""
    (ethertype,) = struct.unpack_from("!H", frame, 12) if len(frame) >= 14 else (0,)
    if ethertype == 0x0806 and len(frame) >= 42:
        return _usable(frame[28:32]) if frame[22:28] == frame[6:12] else None
    if ethertype == 0x86DD and len(frame) >= 78:
        # An advertisement names its target; the source of a solicitation is the sender (or "::" in a DAD probe).
        return _usable(frame[62:78] if frame[54] == _NEIGHBOUR_ADVERT else frame[22:38])
    return None


def _guest_mac(tap_mac: str, guest_mac: str | None) -> bytes:
    """The MAC to look for, its first byte aside: libvirt gives a tap the guest's MAC with 0xfe in front."""
    if guest_mac:
        return bytes.fromhex(guest_mac.replace(":", ""))
    return bytes.fromhex(tap_mac.replace(":", "")) if tap_mac.startswith("fe:") else b""


def _usable(packed: bytes) -> str | None:
    address = ipaddress.ip_address(packed)
    if address.is_unspecified or address.is_multicast or address.is_loopback or packed == b"\xff\xff\xff\xff":
        return None
    return str(address)
