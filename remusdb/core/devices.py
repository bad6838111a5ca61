# SPDX-License-Identifier: Apache-2.0
"""Device state on the wire: XOR against the last one shipped where the length is equal, then zstd.

Payload: one byte (1 whole, 2 XOR against the previous epoch's), big-endian u32 of the raw length, one zstd frame that
states the same length, and nothing behind it.
"""

from __future__ import annotations

import struct

import numpy as np

from remusdb.core.zstdframe import compress, decompress
from remusdb.errors import BadFrame

WHOLE, XOR = 1, 2
HEAD = struct.Struct(">BI")
MAX_DEVICE_STATE_BYTES = 64 << 20  # measured 32-155 KB; a GPU's frame buffer is RAM, not device state


def _xor(a: bytes, b: bytes) -> bytes:
    return bytes(np.bitwise_xor(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8)))


def encode_devices(state: bytes, previous: bytes) -> bytes:
    """The payload that carries `state` to a peer that has `previous`."""
    kind = XOR if len(state) == len(previous) else WHOLE
    raw = _xor(state, previous) if kind == XOR else state
    return HEAD.pack(kind, len(state)) + compress(raw)


def decode_devices(payload: bytes | memoryview, previous: bytes) -> bytes:
    """The state in a payload, given the one before it; BadFrame when the two do not fit."""
    if len(payload) < HEAD.size:
        raise BadFrame("device state is shorter than its head")
    kind, length = HEAD.unpack_from(payload)
    if not 0 < length <= MAX_DEVICE_STATE_BYTES or kind not in (WHOLE, XOR):
        raise BadFrame(f"device state of kind {kind} and {length} bytes")
    if kind == XOR and len(previous) != length:
        raise BadFrame(f"device state of {length} bytes against one of {len(previous)}")
    raw = decompress(memoryview(payload)[HEAD.size :], "device state", length, length)
    return _xor(raw, previous) if kind == XOR else raw
