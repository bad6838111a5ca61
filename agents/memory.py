# SPDX-License-Identifier: Apache-2.0
"""Whether another QEMU fits into this host's memory."""

from __future__ import annotations

import psutil

from remusdb.errors import CannotProtect

QEMU_OVERHEAD_BYTES = 256 << 20  # a QEMU beside its guest's RAM, and the epochs in flight


def require_memory(ram_bytes: int, what: str) -> None:
    """CannotProtect when the RAM of `what` does not fit into what is available here."""
    need, free = ram_bytes + QEMU_OVERHEAD_BYTES, psutil.virtual_memory().available
    if need > free:
        raise CannotProtect(
            f"{what} needs {need >> 20} MiB of memory, {free >> 20} MiB are available on the backup host",
            hint="free memory there, or choose another backup",
        )
