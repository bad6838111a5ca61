# SPDX-License-Identifier: Apache-2.0
"""Files that survive a power cut: after each call the change is on the disk, whole, or it did not happen."""

from __future__ import annotations

import os
from pathlib import Path


def write_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Put a file of exactly this content and mode in place of what is there. OSError as the kernel says it."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)  # not `open`'s: a partial file may be left from before, and the umask counts
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put the folder's entries on the disk: after a rename, or a new file."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
