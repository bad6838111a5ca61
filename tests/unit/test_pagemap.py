# SPDX-License-Identifier: Apache-2.0
"""The kernel's written runs, without a kernel: how they become ranges, and a scan that gets nowhere."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from remusdb.capture import kernel
from remusdb.capture.pagemap import PageMap
from remusdb.capture.runs import MERGE_GAP_BYTES, SPAN_BYTES, ascending, pieces
from remusdb.capture.trying import try_tracking
from remusdb.errors import VmError

GIB = 1 << 30


class Ioctl:
    """A libc whose PAGEMAP_SCAN advances by `steps`, one a call."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def ioctl(self, _fd: int, _request: int, pointer: object) -> int:
        argument = pointer._obj  # type: ignore[attr-defined]
        argument.walk_end = argument.start + self.steps.pop(0)
        return 0


@pytest.fixture
def pages() -> Iterator[PageMap]:
    made = PageMap(os.getpid())
    yield made
    made.close()


@pytest.mark.parametrize("act", ["written", "protect"])
def test_a_scan_that_does_not_advance_is_an_error(pages: PageMap, act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of 1 GiB that is to be protected in part: the walk ends where it began."""
    ioctl = Ioctl([64 << 20, 0])
    monkeypatch.setattr(kernel, "libc", ioctl)
    with pytest.raises(VmError, match="PAGEMAP_SCAN does not advance") as told:
        getattr(pages, act)(GIB, 2 * GIB)
    assert "1 GiB" in told.value.hint
    assert not ioctl.steps


def test_check_tells_of_a_scan_that_does_not_advance(monkeypatch: pytest.MonkeyPatch) -> None:
    assert try_tracking() == ""
    monkeypatch.setattr(PageMap, "written", lambda *_: (_ for _ in ()).throw(VmError("it does not advance")))
    assert try_tracking() == "it does not advance"


def runs(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, dtype=np.uint64).reshape(-1, 2)


def test_near_runs_are_one_range_and_long_ones_are_several() -> None:
    assert pieces(runs()) == []
    near, far = 8192 + MERGE_GAP_BYTES, 8192 + MERGE_GAP_BYTES + 4096
    assert pieces(runs((4096, 8192), (near, near + 4096))) == [(4096, near + 4096)]
    assert pieces(runs((4096, 8192), (far, far + 4096))) == [(4096, 8192), (far, far + 4096)]
    long = 2 * SPAN_BYTES + 4096
    assert pieces(runs((0, long))) == [(0, SPAN_BYTES), (SPAN_BYTES, 2 * SPAN_BYTES), (2 * SPAN_BYTES, long)]


@pytest.mark.parametrize("found", [[(8, 12), (0, 4)], [(0, 8), (4, 12)], [(0, 4), (0, 4)]])
def test_pages_that_were_protected_out_of_order_are_not_believed(found: list[tuple[int, int]]) -> None:
    """Nobody knows then what the kernel did, and a page may be missing."""
    assert ascending(runs((0, 4), (4, 8), (20, 24))).tolist() == [[0, 4], [4, 8], [20, 24]]
    with pytest.raises(VmError, match="0x0-0x"):
        ascending(runs(*found))
