# SPDX-License-Identifier: Apache-2.0
"""Pages that are written in every epoch: they are left unprotected, and copied each time without being asked about.

To protect such a page costs the guest a fault at its next write, and tells what was known. Invariant: **what is hot is
named at every cut**; a page that cools down is protected, and named, at the cut at which it is no more hot.

    named in HOT_AFTER cuts, one after the other ─▶ hot ─▶ every TRY_EVERY cuts protected once: written again?
                                                     ▲                          │ yes                │ no
                                                     └──────────────────────────┘                    └─▶ as any other
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HOT_AFTER = 8
TRY_EVERY = 32  # so a hot page costs a fault in 32 epochs, and one that is hot no more is copied 32 times at most

PageNumbers = NDArray[np.int64]


class Hotness:
    """Of one block's pages; a byte and a byte each, and none that is not touched. For one thread."""

    def __init__(self, pages: int) -> None:
        self.hot = np.zeros(pages, np.uint8)  # 1: hot
        self.count = 0  # of them
        self._streak = np.zeros(pages, np.uint8)  # in how many cuts it was named, without a pause; HOT_AFTER: or more
        self._last: PageNumbers = np.empty(0, np.int64)  # what was named last
        self._turn = 0

    def before(self) -> None:
        """A cut is to come: some of the hot ones are tried."""
        self._turn = (self._turn + 1) % TRY_EVERY
        if not self.count:
            return
        mine = self._last[self._last % TRY_EVERY == self._turn]
        mine = mine[self.hot[mine] == 1]
        self.hot[mine] = 0
        self._streak[mine] = HOT_AFTER - 2  # named in this cut, as it was not protected; if in the next one, too: hot
        self.count -= len(mine)

    def after(self, named: PageNumbers) -> None:
        """A cut was made, which named these pages, ascending: all that are hot, and what else was written."""
        streak = np.minimum(self._streak[named] + 1, HOT_AFTER)
        self._streak[self._last] = 0
        self._streak[named] = streak
        risen = named[(streak == HOT_AFTER) & (self.hot[named] == 0)]
        self.hot[risen] = 1
        self.count += len(risen)
        self._last = named
