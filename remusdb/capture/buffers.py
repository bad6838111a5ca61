# SPDX-License-Identifier: Apache-2.0
"""Room for the content of pages, used again: a page of memory that was never touched costs a fault when it is written,
and a cut is read while the VM stands still."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from remusdb.vm.ramblocks import PAGE_BYTES

KEPT = 2  # one that is being encoded, and one for the next cut
KEPT_PAGES = 8192  # 32 MiB: a larger one goes back to the system
LEAST_PAGES = 512


class PageBuffers:
    """At most `KEPT` of them at rest. Any thread may take and give back."""

    def __init__(self) -> None:
        self._spare: deque[NDArray[np.uint8]] = deque(maxlen=KEPT)

    def take(self, pages: int) -> NDArray[np.uint8]:
        """Shape (pages, 4096); what is in it is left from before."""
        try:
            whole = self._spare.pop()
        except IndexError:
            whole = np.empty((0, PAGE_BYTES), np.uint8)
        if len(whole) < pages:
            whole = np.empty((max(LEAST_PAGES, 1 << (pages - 1).bit_length()), PAGE_BYTES), np.uint8)
        return whole[:pages]

    def give_back(self, taken: NDArray[np.uint8]) -> None:
        """What `take` gave, and nobody reads or writes any more."""
        whole = taken.base
        if isinstance(whole, np.ndarray) and LEAST_PAGES <= len(whole) <= KEPT_PAGES:
            self._spare.append(whole)
