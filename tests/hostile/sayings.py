# SPDX-License-Identifier: Apache-2.0
"""What peers say: an honest HELLO to start from, frames that no encoder of ours would make, and bombs."""

from __future__ import annotations

import struct
import uuid
from typing import Any
from xml.sax.saxutils import escape

import msgspec
import zstandard
from xxhash import xxh3_64

from remusdb import __version__
from remusdb.core.messages import Hello, pack
from remusdb.core.wire import MAGIC, PROTOCOL_VERSION

MIB = 1 << 20
NAMESPACE = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
QEMU = "/usr/bin/qemu-system-x86_64"


def uuid_of(vm: str) -> str:
    """One UUID a name."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, vm.encode(errors="replace").hex()))


def domain_xml(
    vm: str,
    *,
    targets: tuple[str, ...] = ("vda",),
    more: str = "",
    head: str = "",
    top: str = "",
    emulator: str = QEMU,
    kind: str = "kvm",
) -> str:
    """The live XML of a plain VM. `more`: further devices; `top`: elements beside them; `head`: what stands before
    <domain>; `kind`: `qemu` for TCG."""
    disks = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='raw'/>"
        f"<source file='/var/lib/libvirt/images/{target}.raw'/><target dev='{target}' bus='virtio'/></disk>"
        for target in targets
    )
    return (
        f"{head}<domain type='{kind}' {NAMESPACE}><name>{escape(vm)}</name><uuid>{uuid_of(vm)}</uuid>"
        "<memory unit='KiB'>16384</memory><currentMemory unit='KiB'>16384</currentMemory><vcpu>1</vcpu>"
        "<os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os>"
        f"{top}<devices><emulator>{emulator}</emulator>{disks}{more}</devices></domain>"
    )


def hello(vm: str, primary: str, **changes: Any) -> dict[str, Any]:
    """The fields of an honest HELLO for a new session of a VM with one disk of 1 MiB, changed as asked for.

    A dict, so that a field may be of a type, or of a value, that `Hello` would not take.
    """
    fields: dict[str, Any] = {
        "version": __version__,
        "primary": primary,
        "vm": vm,
        "uuid": uuid_of(vm),
        "term": 0,
        "resume": False,
        "epoch": 0,
        "machine": "pc-q35-10.0",
        "domain_xml": domain_xml(vm.replace("\0", "")),
        "blocks": [{"name": "pc.ram", "size": 16 * MIB}],
        "disks": [{"target": "vda", "size": MIB, "allocated": 0}],
        "heartbeat_ms": 100,
        "qemu_version": "10.0.0",
    }
    return {**fields, **changes}


def packed(fields: dict[str, Any]) -> bytes:
    """As msgpack, whatever it is."""
    return msgspec.msgpack.encode(fields)


def honest(vm: str, primary: str) -> bytes:
    """A HELLO by the project's own encoder."""
    return pack(msgspec.convert(hello(vm, primary), Hello))


def frame(kind: int, term: int = 0, epoch: int = 0, payload: bytes = b"", *, claims: int | None = None) -> bytes:
    """A frame with a good checksum, whatever is in it. `claims`: the length that its header tells."""
    length = len(payload) if claims is None else claims
    fields = struct.pack("<4sBBHIIQQ", MAGIC, PROTOCOL_VERSION, kind, 0, length, 0, term, epoch)
    digest = xxh3_64(fields)
    digest.update(payload)
    return fields + struct.pack("<Q", digest.intdigest()) + payload


def zeros_frame(size: int, *, stated: int | None = None, step: int = 64 * MIB) -> bytes:
    """One zstd frame that decompresses to `size` zeros, with the content size stated as `stated` (None: not at all)."""
    if stated is None:
        maker = zstandard.ZstdCompressor(level=3, write_content_size=False).compressobj()
        parts = [maker.compress(bytes(min(step, size - at))) for at in range(0, size, step)]
        return b"".join([*parts, maker.flush()])
    maker = zstandard.ZstdCompressor(level=3).compressobj(size=size)
    parts = [maker.compress(bytes(min(step, size - at))) for at in range(0, size, step)]
    whole = b"".join([*parts, maker.flush()])
    return whole if stated == size else restated(whole, stated)


def restated(whole: bytes, stated: int) -> bytes:
    """The zstd frame with another content size in its header: an 8-byte field, whatever it was before."""
    parameters = zstandard.get_frame_parameters(whole)
    descriptor = whole[4]
    old_size_bytes = (1 if descriptor & 0x20 else 0, 2, 4, 8)[descriptor >> 6]
    window = b"" if descriptor & 0x20 else whole[5:6]
    at = 5 + len(window) + (0, 1, 2, 4)[descriptor & 3]
    body = whole[at + old_size_bytes :]
    window = window or bytes([((max(parameters.window_size, 1024).bit_length() - 10) & 31) << 3])
    return whole[:4] + bytes([0xC0 | (descriptor & 0x04)]) + window + struct.pack("<Q", stated) + body
