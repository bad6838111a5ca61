# SPDX-License-Identifier: Apache-2.0
"""Which pages of a running QEMU were written: userfaultfd write-protect (async) and PAGEMAP_SCAN.

Owns the userfaultfd on QEMU's RAM blocks. Invariant: **pages are protected only while QEMU is stopped and drained**;
then what changes in a page after it was protected is named by the next `collect`, and what is not named was not
changed. (What is hot is not protected, and named by each.)

    protect at one stop ─▶ VM runs, page is copied ─▶ next stop: written since? named, protected, copied again

The kernel lifts a page's protection, and so notes the write, when the page table is asked for writing. For the CPU's
writes (vCPUs, QEMU, vhost, KVM) that is the moment of the write. For a disk's read with O_DIRECT it is the moment in
which the page is *pinned*: the data lands later, past the page table, and a protection that was put on in between
stays as it is. So there must be no pin at that moment. A stop of QEMU drains its block layer before anything else
happens (system/cpus.c, do_vm_stop), however long a read takes: each pin is released, its page noted as written, its
data in memory. A read that pins a page after the stop notes it again, whether it was copied meanwhile or not.

Looking (`written`) changes nothing and may be done at any time. At first all is protected, whatever the kernel says of
it (`everything`); then only what was found, page by page: one protecting scan over all RAM would drop every mapping of
KVM.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections import deque
from typing import NamedTuple

import numpy as np

from remusdb.capture import kernel
from remusdb.capture.hotness import Hotness
from remusdb.capture.inject import userfaultfd_of
from remusdb.capture.pagemap import PageMap
from remusdb.capture.runs import SPAN_BYTES, PageNumbers, Runs, page_numbers, pieces
from remusdb.deadline import Deadline
from remusdb.errors import VmError
from remusdb.vm.ramblocks import Block

_NONE: PageNumbers = np.empty(0, np.int64)
Pages = list[tuple[int, PageNumbers]]  # block index, ascending page numbers


class Span(NamedTuple):
    """Addresses [start, end) in one block, at most SPAN_BYTES, with written pages in them, or all to be protected."""

    block: int
    start: int
    end: int
    whole: bool = False


class Tracker:
    """The written pages of `blocks` of process `pid`."""

    def __init__(self, pid: int, blocks: list[Block], *, kvm: bool = True, hot_pages: bool = False) -> None:
        """`kvm`: what is protected loses its mapping in KVM, so nothing is that need not be. Where it is TCG, one walk
        of all is the fastest. `hot_pages`: leave those unprotected that are written in every epoch (hotness.py).
        """
        self.blocks = blocks
        self._kvm = kvm
        self._hotness = [Hotness(block.pages) for block in blocks]  # where nothing is learnt, nothing is hot
        self._learns = hot_pages
        self._map: PageMap | None = None
        self._uffd = userfaultfd_of(pid)
        try:
            self._map = PageMap(pid)
            fcntl.ioctl(self._uffd, kernel.UFFDIO_API, bytearray(struct.pack("<QQQ", 0xAA, kernel.UFFD_FEATURES, 0)))
            for block in blocks:
                self._register(block)
        except OSError as exc:
            self.close()
            hint = "Linux 6.7 or newer is needed, and RAM that is anonymous, memfd or hugetlbfs"
            raise VmError(f"writes to QEMU's memory cannot be tracked: {exc}", hint=hint) from exc

    def everything(self) -> deque[Span]:
        """All of memory, for the first protection."""
        return deque(
            Span(index, low, min(low + SPAN_BYTES, block.address + block.size), whole=True)
            for index, block in enumerate(self.blocks)
            for low in range(block.address, block.address + block.size, SPAN_BYTES)
        )

    def written(self) -> deque[Span]:
        """Where pages were written since they were protected. Protects nothing: at any time."""
        assert self._map is not None
        return deque(
            Span(index, *piece)
            for index, block in enumerate(self.blocks)
            for piece in pieces(self._map.written(block.address, block.address + block.size))
        )

    def protect(self, spans: deque[Span], within_s: float) -> list[tuple[int, Runs]]:
        """Protect written pages of `spans`, in order, and take from `spans` what is done: at least one, then others
        for so long. The runs that were protected, by block: their content is to be copied after this.

        Only while QEMU is stopped and drained.
        """
        assert self._map is not None
        deadline = Deadline.after(within_s)
        found: list[tuple[int, Runs]] = []
        while spans and (not found or not deadline.over):
            span = spans.popleft()
            found.append((span.block, self._map.protect(span.start, span.end, whole=span.whole)))
        return found

    def pages(self, found: list[tuple[int, Runs]]) -> Pages:
        """What `protect` or `collect` returned, as page numbers. VmError if that is not in order."""
        parts: dict[int, list[Runs]] = {}
        for index, runs in found:
            parts.setdefault(index, []).append(runs)
        numbers = {index: page_numbers(np.concatenate(runs), self.blocks[index]) for index, runs in parts.items()}
        return [(index, pages) for index, pages in numbers.items() if len(pages)]

    def before_collect(self) -> None:
        """What can be done for the next `collect` while the VM runs."""
        if self._learns:
            for hotness in self._hotness:
                hotness.before()

    def collect(self) -> list[tuple[int, Runs]]:
        """What was written since it was protected, by block; protects it. Only while QEMU is stopped and drained.

        What is hot is named, whether it was written or not, and not protected.
        """
        found = [(index, self._collect(index, block)) for index, block in enumerate(self.blocks)]
        return [(index, runs) for index, runs in found if len(runs)]

    def collected(self, pages: Pages) -> None:
        """What `collect` found, as page numbers: learn from it which pages are hot. The VM runs."""
        if self._learns:
            named = dict(pages)
            for index, hotness in enumerate(self._hotness):
                hotness.after(named.get(index, _NONE))

    def _collect(self, index: int, block: Block) -> Runs:
        assert self._map is not None
        if not self._kvm:
            return self._map.protect(block.address, block.address + block.size)
        hotness = self._hotness[index]
        return self._map.collect(block, hotness.hot, hotness.count)

    def close(self) -> None:
        """Stop tracking; QEMU's memory is as it was. May be called twice."""
        if self._map is not None:
            self._map.close()
        if self._uffd >= 0:
            os.close(self._uffd)
        self._uffd = -1

    def _register(self, block: Block) -> None:
        argument = struct.pack("<QQQQ", block.address, block.size, kernel.UFFDIO_REGISTER_MODE_WP, 0)
        fcntl.ioctl(self._uffd, kernel.UFFDIO_REGISTER, bytearray(argument))
