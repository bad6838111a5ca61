# SPDX-License-Identifier: Apache-2.0
"""Runs of memory, as the kernel names what was written: rows (first address, end address), ascending."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from remusdb.errors import VmError
from remusdb.vm.ramblocks import PAGE_BYTES, Block

MERGE_GAP_BYTES = 16 * PAGE_BYTES  # one ioctl over a gap of clean pages is cheaper than two ioctls
SPAN_BYTES = 64 << 20  # 1.3 ms to protect where every page is mapped by itself (docs/facts.md, "Capture")

Runs = NDArray[np.uint64]
PageNumbers = NDArray[np.int64]


def pieces(runs: Runs) -> list[tuple[int, int]]:
    """Ascending runs as few [start, end) ranges: those nearer than MERGE_GAP_BYTES made one, none over SPAN_BYTES."""
    if not len(runs):
        return []
    apart = np.flatnonzero(runs[1:, 0] - runs[:-1, 1] > MERGE_GAP_BYTES) + 1
    first = runs[np.concatenate(([0], apart)), 0].tolist()
    last = runs[np.concatenate((apart, [len(runs)])) - 1, 1].tolist()
    return [
        (low, min(low + SPAN_BYTES, end))
        for start, end in zip(first, last, strict=True)
        for low in range(start, end, SPAN_BYTES)
    ]


def ascending(runs: Runs) -> Runs:
    """What was protected, in the order in which it came. VmError if that is not ascending, each page once: then it is
    not known what the kernel did, and a page may be missing."""
    if wrong := _out_of_order(runs):
        raise VmError(f"PAGEMAP_SCAN protected pages twice, or out of order: {wrong}", hint="report this with uname -r")
    return runs


def page_count(runs: Runs) -> int:
    """How many pages they are."""
    return int((runs[:, 1] - runs[:, 0]).sum()) // PAGE_BYTES


def page_numbers(runs: Runs, block: Block) -> PageNumbers:
    """The pages of these runs by their numbers in `block`, ascending. VmError as `ascending`."""
    runs = ascending(runs)
    start = ((runs[:, 0] - np.uint64(block.address)) >> np.uint64(12)).astype(np.int64)
    count = ((runs[:, 1] - runs[:, 0]) >> np.uint64(12)).astype(np.int64)
    if not len(start):
        return start
    before = np.cumsum(count) - count
    return np.repeat(start - before, count) + np.arange(int(count.sum()), dtype=np.int64)


def runs_of(numbers: PageNumbers) -> tuple[PageNumbers, PageNumbers]:
    """Ascending page numbers, not none, as (first page, page count) of their contiguous runs."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    starts = np.concatenate(([0], breaks))
    ends = np.concatenate((breaks, [len(numbers)]))
    return numbers[starts], ends - starts


def as_runs(numbers: PageNumbers, address: int) -> Runs:
    """Ascending numbers of pages of the block at `address`, as runs of memory."""
    if not len(numbers):
        return np.empty((0, 2), np.uint64)
    first, count = runs_of(numbers)
    return np.column_stack((first, first + count)).astype(np.uint64) * np.uint64(PAGE_BYTES) + np.uint64(address)


def _out_of_order(runs: Runs) -> str:
    """The first runs that are, with those around them; empty: none."""
    found = np.flatnonzero(runs[1:, 0] < runs[:-1, 1])
    if not len(found):
        return ""
    at = int(found[0])
    return ", ".join(f"{start:#x}-{end:#x}" for start, end in runs[max(0, at - 1) : at + 3].tolist())
