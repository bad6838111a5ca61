# SPDX-License-Identifier: Apache-2.0
"""Memory in a file is tracked like any other: what is written is told, also across write-back and reclaim."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from remusdb.capture import kernel
from remusdb.vm.ramblocks import PAGE_BYTES

PAGES, ROUNDS, WRITES = 1024, 40, 25
MADV_PAGEOUT = 21  # linux/mman.h; Python 3.11's mmap does not name it
PLACES = {"tmpfs": Path("/dev/shm"), "disk": Path("/var/tmp")}


def scan(pagemap: int, start: int, *, protect: bool) -> set[int]:
    """The numbers of the written pages."""
    flags = kernel.PM_SCAN_CHECK_WPASYNC | (kernel.PM_SCAN_WP_MATCHING if protect else 0)
    vector = (ctypes.c_uint64 * (3 * PAGES))()
    arg = kernel.ScanArg(
        ctypes.sizeof(kernel.ScanArg), flags, start, start + PAGES * PAGE_BYTES, 0, ctypes.addressof(vector), PAGES,
        0, 0, kernel.PAGE_IS_WRITTEN, 0, kernel.PAGE_IS_WRITTEN,
    )  # fmt: skip
    count = kernel.check(kernel.libc.ioctl(pagemap, kernel.PAGEMAP_SCAN, ctypes.byref(arg)), "PAGEMAP_SCAN")
    runs = [(vector[3 * index] - start, vector[3 * index + 1] - start) for index in range(count)]
    return {page for low, high in runs for page in range(low // PAGE_BYTES, high // PAGE_BYTES)}


@pytest.fixture
def file(request: pytest.FixtureRequest) -> Iterator[int]:
    path = PLACES[request.param] / f"remusdb-test-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(path)
    os.ftruncate(fd, PAGES * PAGE_BYTES)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("file", PLACES, indirect=True)
@pytest.mark.parametrize("sharing", [mmap.MAP_SHARED, mmap.MAP_PRIVATE], ids=["shared", "private"])
def test_memory_in_a_file_is_tracked(file: int, sharing: int) -> None:
    memory = mmap.mmap(file, PAGES * PAGE_BYTES, flags=sharing)
    anchor = ctypes.c_char.from_buffer(memory)
    start, chance = ctypes.addressof(anchor), random.Random(7)
    uffd = kernel.libc.syscall(kernel.SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | kernel.UFFD_USER_MODE_ONLY)
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    fcntl.ioctl(uffd, kernel.UFFDIO_API, bytearray(struct.pack("<QQQ", 0xAA, kernel.UFFD_FEATURES, 0)))
    argument = struct.pack("<QQQQ", start, len(memory), kernel.UFFDIO_REGISTER_MODE_WP, 0)
    fcntl.ioctl(uffd, kernel.UFFDIO_REGISTER, bytearray(argument))
    scan(pagemap, start, protect=True)
    for number in range(ROUNDS):
        written = {chance.randrange(PAGES) for _ in range(WRITES)}
        for page in written:
            memory[page * PAGE_BYTES + chance.randrange(PAGE_BYTES)] = number
        if number % 4 == 1:
            os.fsync(file)  # write-back protects pages of its own accord
        if number % 4 == 3:
            memory.madvise(MADV_PAGEOUT)
        assert written <= scan(pagemap, start, protect=True)
    os.close(uffd)
    os.close(pagemap)
    del anchor
    memory.close()
