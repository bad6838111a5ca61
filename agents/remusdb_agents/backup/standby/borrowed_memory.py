# SPDX-License-Identifier: Apache-2.0
"""The memory of one QEMU, seen by another: a page is copied when it is first touched.

Loading device state looks at some pages of guest memory (virtio's rings), whatever the size of the VM, so a copy that
is only loaded needs neither the time nor the room of all of it.

Owns a userfaultfd on the borrower's large RAM blocks, and the thread that answers it. Invariant: what the borrower sees
of them is what the lender has while `lend` is on; who touches a page before that waits for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from remusdb.capture import kernel
from remusdb.capture.inject import userfaultfd_of
from remusdb.capture.memory import ProcessMemory
from remusdb.errors import VmError
from remusdb.threads import spawn
from remusdb.vm.ramblocks import PAGE_BYTES, Block

MESSAGE = struct.Struct("<B7xQQ8x")  # struct uffd_msg of a page fault: event, flags, address
MESSAGES = 64  # read at a time
STEP_PAGES = 4096
PAGEMAP_STEP = 1 << 17  # entries of 8 bytes
PRESENT = np.uint64(3 << 62)  # pagemap: the page is in memory, or in swap


class BorrowedMemory:
    """`pairs` of RAM blocks, the borrower's and the lender's; those over `small_bytes` are given page by page."""

    def __init__(
        self,
        pid: int,
        pairs: Sequence[tuple[Block, Block]],
        lender: ProcessMemory,
        small_bytes: int,
        broken: Callable[[Exception], None],
    ) -> None:
        """Nothing is given before `lend`. `broken`: a page could not be given, and the borrower waits for ever."""
        self._mine = ProcessMemory(pid)
        self._lender = lender
        self._small = [pair for pair in pairs if pair[0].size <= small_bytes]
        self._large = [pair for pair in pairs if pair[0].size > small_bytes]
        self._broken = broken
        self.given = 0  # pages, so far
        self._uffd, self.kernel_too = _watch(
            pid
        )  # whether the kernel, on QEMU's behalf, sees the lender's pages as well
        try:
            fcntl.ioctl(self._uffd, kernel.UFFDIO_API, bytearray(struct.pack("<QQQ", 0xAA, 0, 0)))
            for mine, _ in self._large:
                words = struct.pack("<QQQQ", mine.address, mine.size, kernel.UFFDIO_REGISTER_MODE_MISSING, 0)
                fcntl.ioctl(self._uffd, kernel.UFFDIO_REGISTER, bytearray(words))
            # What it touched before, also by a huge page around it, is not missing any more.
            self._touched = [(*pair, _present(pid, pair[0])) for pair in self._large]
        except OSError as exc:
            self.close()
            raise VmError(f"the copy's memory cannot be lent: {exc}") from exc

    def close(self) -> None:
        """Lend nothing more; whoever waits for a page finds zeros. May be called twice."""
        if self._uffd >= 0:
            os.close(self._uffd)
            self._uffd = -1

    @contextmanager
    def lend(self) -> Iterator[None]:
        """Give what is touched, from a lender that stands still."""
        for mine, its in self._small:
            self._copy(mine, its, np.arange(mine.pages, dtype=np.int64), zeros=False)
        for mine, its, numbers in self._touched:
            self._copy(mine, its, numbers, zeros=True)
        quit_fd = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            thread = spawn(self._serve, quit_fd, name="lend")
            try:
                yield
            finally:
                os.eventfd_write(quit_fd, 1)
                thread.join()
        finally:
            os.close(quit_fd)

    def _copy(self, mine: Block, its: Block, numbers: NDArray[np.int64], *, zeros: bool) -> None:
        """Copy these pages now; without `zeros` only those that hold something."""
        for low in range(0, len(numbers), STEP_PAGES):
            part = numbers[low : low + STEP_PAGES]
            content = self._lender.read(its.address, part)
            if not zeros:
                used = content.view(np.uint64).any(axis=1)
                part, content = part[used], content[used]
            self._mine.write(mine.address, part, content)

    def _serve(self, quit_fd: int) -> None:
        """Task boundary: a page that cannot be given would keep QEMU waiting."""
        try:
            while not self._wait(quit_fd):
                with suppress(BlockingIOError):
                    messages = os.read(self._uffd, MESSAGES * MESSAGE.size)
                    for event, _flags, address in MESSAGE.iter_unpack(messages):
                        if event == kernel.UFFD_EVENT_PAGEFAULT:
                            self._give(address & -PAGE_BYTES)
        except Exception as exc:
            self._broken(exc)

    def _wait(self, quit_fd: int) -> bool:
        """Until a page is wanted (False), or nothing more is to be given (True)."""
        poll = select.poll()
        for fd in (self._uffd, quit_fd):
            poll.register(fd, select.POLLIN)
        return quit_fd in (fd for fd, _ in poll.poll())

    def _give(self, address: int) -> None:
        mine, its = next(pair for pair in self._large if 0 <= address - pair[0].address < pair[0].size)
        number = np.array([(address - mine.address) // PAGE_BYTES], dtype=np.int64)
        content = self._lender.read(its.address, number)
        words = bytearray(struct.pack("<QQQQq", address, content.ctypes.data, PAGE_BYTES, 0, 0))
        try:
            fcntl.ioctl(self._uffd, kernel.UFFDIO_COPY, words)
            self.given += 1
        except OSError as exc:
            if exc.errno != errno.EEXIST:  # two threads of QEMU may ask for the same page
                raise
            fcntl.ioctl(self._uffd, kernel.UFFDIO_WAKE, bytearray(struct.pack("<QQ", address, PAGE_BYTES)))


def _watch(pid: int) -> tuple[int, bool]:
    """The descriptor, and whether it hears of faults that the kernel takes: only a privileged QEMU may ask for them."""
    try:
        return userfaultfd_of(pid, 0), True
    except VmError as exc:
        if not isinstance(exc.__cause__, OSError) or exc.__cause__.errno != errno.EPERM:
            raise
    return userfaultfd_of(pid), False


def _present(pid: int, block: Block) -> NDArray[np.int64]:
    """The pages of a block that are not missing."""
    found = []
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(block.address // PAGE_BYTES * 8)
        for first in range(0, block.pages, PAGEMAP_STEP):
            entries = np.frombuffer(pagemap.read(8 * min(PAGEMAP_STEP, block.pages - first)), dtype=np.uint64)
            found.append(np.flatnonzero(entries & PRESENT) + first)
    return np.concatenate(found).astype(np.int64)
