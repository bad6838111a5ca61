# SPDX-License-Identifier: Apache-2.0
"""The rounds of the initial sync of memory, over a VM that is a list."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from remusdb.capture.cut import DirtyBlock
from remusdb.capture.tracker import Span
from remusdb.errors import VmError
from remusdb.vm.ramblocks import PAGE_BYTES, Block
from remusdb.worker.memory_copy import FEW_PAGES, MAX_ROUNDS, STEP_PAGES, MemoryCopy

PAGES = 3 * STEP_PAGES


class FakeVm:
    """A VM of one block. Each round finds what `dirtied` tells; a stop protects one span; as `Capture`, and a log."""

    def __init__(self, dirtied: list[int]) -> None:
        self.blocks = [Block("ram", PAGES * PAGE_BYTES, 0)]
        self.dirtied = dirtied
        self.events: list[str] = []
        self.unbounded = False

    def everything(self) -> deque[Span]:
        return self.written()

    def written(self) -> deque[Span]:
        pages = self.dirtied.pop(0)
        middle = pages // 2
        return deque([Span(0, 0, middle), Span(0, middle, pages)] if pages else [])

    def protect(self, spans: deque[Span], waiting: Any) -> list[tuple[int, np.ndarray]]:
        assert self.unbounded, "a full disk log would hold up the stop"
        waiting(1.5)
        span = spans.popleft()
        self.events.append(f"stop {span.start}-{span.end}")
        return [(0, np.arange(span.start, span.end))]

    def read(self, pages: list[tuple[int, np.ndarray]]) -> list[DirtyBlock]:
        assert not self.unbounded, "read while the VM is stopped"
        return [DirtyBlock(block, numbers, np.empty((0, PAGE_BYTES), np.uint8)) for block, numbers in pages]

    def send(self, dirty: DirtyBlock) -> None:
        assert len(dirty.numbers) <= STEP_PAGES
        self.events.append(f"copy {dirty.numbers[0]}-{dirty.numbers[-1] + 1}")

    @contextmanager
    def cutting(self) -> Iterator[None]:
        self.unbounded = True
        yield
        self.unbounded = False


def copied(vm: FakeVm) -> list[tuple[str, int, int]]:
    told: list[tuple[str, int, int]] = []
    fake: Any = vm  # the capture, and the one write log
    MemoryCopy(fake, [fake], vm.send, lambda step, done, total, _unit: told.append((step, done, total))).run()
    return told


def test_each_part_is_copied_after_its_own_stop() -> None:
    vm = FakeVm([PAGES, 10])
    told = copied(vm)
    half, step = PAGES // 2, STEP_PAGES
    assert vm.events == [
        *(f"stop 0-{half}", f"copy 0-{step}", f"copy {step}-{half}"),
        *(f"stop {half}-{PAGES}", f"copy {half}-{half + step}", f"copy {half + step}-{PAGES}"),
        *("stop 0-5", "copy 0-5", "stop 5-10", "copy 5-10"),
    ]
    assert told[-3] == ("copy memory", PAGES * PAGE_BYTES, PAGES * PAGE_BYTES)


def test_rounds_end_when_one_is_small_or_there_were_enough() -> None:
    calm = FakeVm([PAGES, FEW_PAGES, FEW_PAGES - 1, PAGES])
    copied(calm)
    assert calm.dirtied == [PAGES]
    busy = FakeVm([PAGES] * 20)
    copied(busy)
    assert len(busy.dirtied) == 20 - 1 - MAX_ROUNDS


def test_a_first_round_that_does_not_name_everything_is_an_error() -> None:
    with pytest.raises(VmError, match="7 pages of QEMU's memory cannot be tracked"):
        copied(FakeVm([PAGES - 7]))
