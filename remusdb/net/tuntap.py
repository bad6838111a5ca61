# SPDX-License-Identifier: Apache-2.0
"""The two ends of the tap gate that carry frames: a tap to read from, a packet socket to send with.

Both speak `virtio_net_hdr` (10 bytes before every frame), so a frame that the guest left unsegmented or with an
unfinished checksum passes as it is, and the kernel finishes it only where the way out needs that.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from remusdb.errors import GateError

VNET_HEADER_BYTES = 10
# The largest frame a tap hands out: a 64 KiB packet, Ethernet and VLAN headers, and the vnet header, rounded up.
FRAME_MAX_BYTES = 66 * 1024

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOFFLOAD = 0x400454CA, 0x400454CB, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_OFFLOAD_BASIC = 0x01 | 0x02 | 0x04 | 0x08  # checksum, TSO4, TSO6, ECN
_OFFLOAD_UDP = 0x20 | 0x40  # USO4, USO6: Linux 6.2 and later
_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_SEND_BUFFER_BYTES = 4 << 20


def open_tap(name: str, *, persist: bool) -> int:
    """Make or attach to tap `name`; the descriptor is non-blocking. OSError EBUSY if someone reads it already."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(fd, _TUNSETPERSIST, int(persist))
        _allow_offloads(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _allow_offloads(fd: int) -> None:
    """Take frames unsegmented; what the kernel knows no flag for, it segments before we read it."""
    try:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOAD_BASIC | _OFFLOAD_UDP)
    except OSError:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOAD_BASIC)


def open_sender(name: str, mark: int) -> socket.socket:
    """A packet socket that sends on link `name` with `skb->mark`, and receives nothing (protocol 0)."""
    sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        sender.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        sender.bind((name, 0))
        sender.setblocking(False)
    except OSError as error:
        sender.close()
        raise GateError(f"no way to send frames on {name}: {error.strerror}", hint="run as root") from error
    return sender
