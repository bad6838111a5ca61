# SPDX-License-Identifier: Apache-2.0
"""What this kernel offers QEMU's virtio-net: the offloads of a tap, and vhost-net.

QEMU offers a guest what its tap and vhost-net can do, and refuses a device state in which the guest uses more.
"""

from __future__ import annotations

import fcntl
import os
import struct

NO_VHOST = -1

_TUNSETIFF, _TUNSETOFFLOAD, _VHOST_GET_FEATURES = 0x400454CA, 0x400454D0, 0x8008AF00
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
CSUM, TSO4, TSO6, ECN, UFO, USO4, USO6, TUNNEL, TUNNEL_CSUM = (1 << bit for bit in range(9))  # TUN_F_*, linux/if_tun.h
# As QEMU asks (net/tap-linux.c): the kernel takes an offload only with what it builds on.
_TRIES = (
    *(CSUM, CSUM | TSO4, CSUM | TSO6, CSUM | TSO4 | TSO6 | ECN, CSUM | UFO, CSUM | USO4 | USO6),
    *(CSUM | USO4 | USO6 | TUNNEL, CSUM | USO4 | USO6 | TUNNEL | TUNNEL_CSUM),
)
NAMES = {
    CSUM: "checksums", TSO4: "TSO", TSO6: "TSO over IPv6", ECN: "TSO with ECN", UFO: "UFO", USO4: "USO",
    USO6: "USO over IPv6", TUNNEL: "GSO in UDP tunnels", TUNNEL_CSUM: "GSO in UDP tunnels with checksums",
}  # fmt: skip
# Of vhost-net's features those that QEMU's virtio-net offers by default, if vhost-net has them (hw/net/vhost_net.c).
VHOST_DEFAULT = sum(
    1 << bit for bit in (15, 28, 29, 32, 40)
)  # mergeable buffers, indirect, event index, version 1, reset


def tun_offloads() -> int:
    """TUN_F_* that a tap takes. Tried on one that is gone again at once. OSError when none can be made."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"rdbtry%d", _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        taken = 0
        for offloads in _TRIES:
            if _takes(fd, offloads):
                taken |= offloads
        return taken
    finally:
        os.close(fd)


def vhost_features(path: str = "/dev/vhost-net") -> int:
    """The feature bits of vhost-net; NO_VHOST where there is none. OSError when it does not say."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return NO_VHOST
    try:
        features = bytearray(8)
        fcntl.ioctl(fd, _VHOST_GET_FEATURES, features)
        return int.from_bytes(features, "little")
    finally:
        os.close(fd)


def told(offloads: int) -> str:
    """Their names."""
    return ", ".join(name for bit, name in NAMES.items() if offloads & bit)


def _takes(fd: int, offloads: int) -> bool:
    try:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, offloads)
    except OSError:
        return False
    return True
