# SPDX-License-Identifier: Apache-2.0
"""A UEFI guest's variables on the backup: the file that its flash memory is written to.

The flash chip that holds them is a RAM block of QEMU's. So it is captured, cut and sent with the memory: the replica's
flash is the primary's at the last epoch. What QEMU would write to its file, this writes instead, page by page, so that
the file is as new as the disks are when the VM has to be started from them (docs/decisions/0013).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from remusdb import safexml
from remusdb.core.messages import RamBlock
from remusdb.errors import CannotProtect, DiskError
from remusdb.safefiles import make_folder
from remusdb.vm.ramblocks import PAGE_BYTES

FLASH = "system.flash1"  # hw/i386/pc_sysfw.c: flash0 is the firmware, flash1 its variables
FILE = "nvram.fd"  # beside the images
MAX_BYTES = 64 << 20  # QEMU allows 8 MiB for both (max-fw-size), unless it is told otherwise


class Nvram:
    """The file of one session. One thread writes."""

    def __init__(self, path: Path, size: int) -> None:
        """Make it `size` bytes of zeros, as the standby's memory is before anything came."""
        if size > MAX_BYTES:
            raise CannotProtect(f"UEFI variables of {size} bytes: no more than {MAX_BYTES} are kept")
        self.path = path
        try:
            make_folder(path.parent)
            path.unlink(missing_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.ftruncate(self._file, size)
        except OSError as exc:
            raise DiskError(f"UEFI variables {path}: {exc.strerror}") from exc

    def write(self, numbers: NDArray[np.int64], content: NDArray[np.uint8]) -> None:
        """Pages of the flash, as they are now."""
        try:
            for number, page in zip(numbers.tolist(), content, strict=True):
                os.pwrite(self._file, page.tobytes(), number * PAGE_BYTES)
        except OSError as exc:
            raise DiskError(f"UEFI variables {self.path}: {exc.strerror}") from exc

    def close(self) -> None:
        """Write no more; the file stays. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """Close, and delete the file. Idempotent."""
        self.close()
        self.path.unlink(missing_ok=True)


def flash_bytes(domain_xml: str, blocks: Sequence[RamBlock]) -> int:
    """The size of the variables' flash; 0 for a VM without one. CannotProtect where it should be and is not."""
    if safexml.parse(domain_xml).find("./os/nvram") is None:
        return 0
    sizes = [block.size for block in blocks if block.name == FLASH]
    if not sizes:
        raise CannotProtect(f"the VM has UEFI variables, and its QEMU no RAM block {FLASH} that holds them")
    return sizes[0]
