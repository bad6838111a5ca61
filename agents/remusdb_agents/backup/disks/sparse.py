# SPDX-License-Identifier: Apache-2.0
"""Reading disk images without their holes."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Its descriptor; a link is not followed."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


def next_data(file: int, at: int, size: int) -> int:
    """Where the first byte at or after `at` is that is not in a hole; `size`, the file's, if there is none."""
    try:
        return max(at, os.lseek(file, at, os.SEEK_DATA))
    except OSError as exc:
        if exc.errno == errno.ENXIO:  # none up to the end
            return size
        return at  # no holes on this file system


def next_hole(file: int, at: int, size: int) -> int:
    """Where the data at `at` ends; `size`, the file's, where nothing is known of holes."""
    try:
        return os.lseek(file, at, os.SEEK_HOLE)
    except OSError:
        return size


def read(file: int, offset: int, length: int) -> memoryview:
    """Exactly these bytes."""
    data = bytearray(length)
    view, done = memoryview(data), 0
    while done < length:
        got = os.preadv(file, [view[done:]], offset + done)
        if not got:
            raise OSError(f"the file ends at byte {offset + done}")
        done += got
    return view
