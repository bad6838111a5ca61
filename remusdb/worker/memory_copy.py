# SPDX-License-Identifier: Apache-2.0
"""The initial sync of memory, in rounds, while the VM runs.

A round looks for what was written (the first takes everything), then stops the VM again and again for a few ms, each
time to protect a part of that, and copies the part while the VM runs. Invariant: what was copied is what the page held
at its stop, or the next round names the page again (capture/tracker.py says why only a stop will do).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from remusdb.capture.cut import Capture, DirtyBlock
from remusdb.capture.tracker import Pages, Span
from remusdb.disk.writelog import WriteLog
from remusdb.errors import VmError
from remusdb.vm.ramblocks import PAGE_BYTES
from remusdb.worker.hurry import hurried

Progress = Callable[[str, int, int, str], None]

STEP_PAGES = 4096  # 16 MiB of memory read, encoded and sent at a time
FEW_PAGES = 2048  # the copy of memory is near enough: the rest goes into epoch 1
MAX_ROUNDS = 8


class MemoryCopy:
    """For one thread. Between its rounds nobody else may protect pages."""

    def __init__(
        self, capture: Capture, logs: Sequence[WriteLog], send: Callable[[DirtyBlock], None], progress: Progress
    ) -> None:
        """`logs`: of the disks, which must not hold up a stop; `send`: brings pages to the replica, in order."""
        self._capture = capture
        self._logs = logs
        self._send = send
        self._progress = progress
        self._pages = sum(block.pages for block in capture.blocks)

    def run(self) -> None:
        """All of memory, then what was written meanwhile, until a round is small. VmError, or what `send` raises."""
        first = self._copy(self._capture.everything(), tell=True)
        if first != self._pages:
            raise VmError(
                f"{self._pages - first} pages of QEMU's memory cannot be tracked: PAGEMAP_SCAN does not name them",
                hint="try a newer Linux (6.7 is the oldest), and report this with the output of uname -r",
            )
        for _ in range(MAX_ROUNDS):
            if self.round() < FEW_PAGES:
                return

    def round(self) -> int:
        """Copy what was written since it was protected: how many pages."""
        return self._copy(self._capture.written(), tell=False)

    def _copy(self, spans: deque[Span], *, tell: bool) -> int:
        """Protect these spans, stop by stop, and copy each part; how many pages. `tell`: report progress."""
        copied = 0
        while spans:
            for block, numbers in self._protect(spans):
                for low in range(0, len(numbers), STEP_PAGES):
                    part = numbers[low : low + STEP_PAGES]
                    for dirty in self._capture.read([(block, part)]):
                        self._send(dirty)
                    copied += len(part)
                    if tell:
                        self._progress("copy memory", copied * PAGE_BYTES, self._pages * PAGE_BYTES, "bytes")
        return copied

    def _protect(self, spans: deque[Span]) -> Pages:
        with ExitStack() as stack:
            for log in self._logs:
                stack.enter_context(log.cutting())
            stack.enter_context(hurried())
            return self._capture.protect(spans, self._waiting)

    def _waiting(self, seconds: float) -> None:
        self._progress("wait for libvirt, or for the VM's disks", int(seconds), 0, "s")
