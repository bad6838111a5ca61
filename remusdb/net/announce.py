# SPDX-License-Identifier: Apache-2.0
"""Telling the network where the VM is now.

After a takeover the VM's MAC is behind another switch port. Two tables must learn that:

- the backup host's own bridge: as long as the primary lived it saw the VM's frames come in from the LAN, so it
  believes the MAC is on the uplink and would drop what comes from there for the VM (same port, no hairpin).
  Frames we send *on* the bridge device teach it nothing, so its forwarding entry is set by netlink, on the tap's port;
- the switches outside, and the ARP caches of the clients: frames with the VM's MAC as source, sent on the bridge
  device, which floods them out of every uplink with the bridge's own VLAN and STP rules.

The MAC does not change, so RARP alone moves the traffic; ARP and NA refresh caches that went stale in the outage.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import struct
import threading
from collections.abc import Iterable, Sequence
from itertools import pairwise

from remusdb.errors import GateError, NoThread
from remusdb.net.links import Links
from remusdb.threads import spawn

log = logging.getLogger(__name__)

REPEAT_AT_MS = (0, 50, 250, 1000, 5000)

_BROADCAST = b"\xff" * 6
_ETH_ARP, _ETH_RARP, _ETH_IPV6 = 0x0806, 0x8035, 0x86DD
_FRAME_LEAST_BYTES = 60
_ALL_NODES = ipaddress.IPv6Address("ff02::1").packed
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_ICMPV6, _NEIGHBOUR_ADVERT, _OVERRIDE, _TARGET_LINK_ADDRESS = 58, 136, 0x20000000, 2


def rarp(mac: str) -> bytes:
    """A reverse ARP request of the VM for itself: switches learn the port, hosts ignore it. What QEMU sends too."""
    own = _mac(mac)
    return _padded(_BROADCAST + own + struct.pack("!HHHBBH", _ETH_RARP, 1, 0x0800, 6, 4, 3) + (own + bytes(4)) * 2)


def gratuitous_arp(mac: str, address: str) -> bytes:
    """An ARP request for the VM's own address, which updates every cache that has it (RFC 5227, 3)."""
    own, ip = _mac(mac), ipaddress.IPv4Address(address).packed
    head = _BROADCAST + own + struct.pack("!HHHBBH", _ETH_ARP, 1, 0x0800, 6, 4, 1)
    return _padded(head + own + ip + bytes(6) + ip)


def unsolicited_na(mac: str, address: str) -> bytes:
    """An unsolicited neighbour advertisement with the override flag (RFC 4861, 7.2.6)."""
    own, ip = _mac(mac), ipaddress.IPv6Address(address).packed
    body = struct.pack("!I", _OVERRIDE) + ip + struct.pack("!BB", _TARGET_LINK_ADDRESS, 1) + own
    length = 4 + len(body)
    pseudo = ip + _ALL_NODES + struct.pack("!II", length, _ICMPV6)
    message = struct.pack("!BBH", _NEIGHBOUR_ADVERT, 0, 0) + body
    message = struct.pack("!BBH", _NEIGHBOUR_ADVERT, 0, _checksum(pseudo + message)) + body
    # Hop limit 255: receivers discard anything lower as forged from afar.
    header = struct.pack("!IHBB", 6 << 28, length, _ICMPV6, 255) + ip + _ALL_NODES
    return _ALL_NODES_MAC + own + struct.pack("!H", _ETH_IPV6) + header + message


def frames(mac: str, addresses: Iterable[str]) -> list[bytes]:
    """Everything to say about a VM."""
    said = [rarp(mac)]
    for address in addresses:
        version = ipaddress.ip_address(address).version
        said.append(gratuitous_arp(mac, address) if version == 4 else unsolicited_na(mac, address))
    return said


def announce(
    bridge_or_ifname: str, mac: str, addresses: Sequence[str], repeat_at_ms: Sequence[int] = REPEAT_AT_MS
) -> threading.Thread | None:
    """Announce the VM behind tap `bridge_or_ifname` (best), or on a bridge or other interface.

    The first round is sent before this returns; a daemon thread, returned, repeats it, since the network may
    still be moving (None where there is none to be had). GateError if the first round cannot be sent.
    """
    out, said = _way_out(bridge_or_ifname, mac), frames(mac, addresses)
    sender = _sender(out)
    try:
        _send(sender, said)
    except OSError as error:
        sender.close()
        raise GateError(f"nothing can be announced on {out}: {error.strerror}") from error
    waits_ms = [later - earlier for earlier, later in pairwise(repeat_at_ms)]
    try:
        return spawn(_repeat, sender, said, waits_ms, name=f"announce-{out}")
    except NoThread as error:  # the VM runs and was announced: that must not fail for it
        log.warning("the VM behind %s is announced once only: %s", out, error)
        sender.close()
        return None


def _way_out(name: str, mac: str) -> str:
    """Where to send; a bridge port's bridge is taught the MAC on the way."""
    with Links() as links:
        link = links.get(name)
        if not link.master:
            return name
        links.set_forwarding_entry(link, mac)
        return links.name_of(link.master)


def _repeat(sender: socket.socket, said: Sequence[bytes], waits_ms: Sequence[int]) -> None:
    pause = threading.Event()
    with sender:
        for wait_ms in waits_ms:
            pause.wait(wait_ms / 1000)
            with contextlib.suppress(OSError):  # the link may be down for a moment: that is what repeating is for
                _send(sender, said)


def _sender(name: str) -> socket.socket:
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)  # protocol 0: send only
    try:
        sender.bind((name, 0))
    except OSError as error:
        sender.close()
        raise GateError(f"nothing can be announced on {name}: {error.strerror}") from error
    return sender


def _send(sender: socket.socket, said: Iterable[bytes]) -> None:
    for frame in said:
        sender.send(frame)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _padded(frame: bytes) -> bytes:
    return frame.ljust(_FRAME_LEAST_BYTES, b"\0")


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
