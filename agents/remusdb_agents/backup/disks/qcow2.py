# SPDX-License-Identifier: Apache-2.0
"""The header of a qcow2 file (QEMU's docs/interop/qcow2.rst): whether the file stands on its own.

Such a header may have been written by whoever had QEMU's rights, so it is read here, before any program of QEMU's
opens the file: that would open, as root, whatever other file the header names.
"""

from __future__ import annotations

import os
import struct

HEADER = struct.Struct(">4sIQIIQI")  # magic, version, backing file's place and length, cluster bits, size, encryption
MAGIC = b"QFI\xfb"
FEATURES_AT, FEATURES = 72, struct.Struct(">Q")  # of version 3: those without which it cannot be read
# Dirty, another compression, extended L2 entries: of this file alone. Not: corrupt, an external data file, what is new.
HARMLESS_FEATURES = 1 << 0 | 1 << 3 | 1 << 4


def size_if_alone(file: int) -> int:
    """The size, as its guest saw it, of a qcow2 file that needs no other file and no key. ValueError for any other."""
    head = os.pread(file, FEATURES_AT + FEATURES.size, 0)
    if len(head) < FEATURES_AT + FEATURES.size or not head.startswith(MAGIC):
        raise ValueError("it is no qcow2 file")
    _magic, version, backing_at, _length, _bits, size, encryption = HEADER.unpack_from(head)
    features = FEATURES.unpack_from(head, FEATURES_AT)[0] if version >= 3 else 0
    if version not in (2, 3) or backing_at or encryption or features & ~HARMLESS_FEATURES:
        raise ValueError("it needs other files or a key, or is damaged")
    return int(size)
