# SPDX-License-Identifier: Apache-2.0
"""From captured pages to payloads: C and numpy in turns, against a plain copy of the same pages, in one run."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest

from remusdb import native
from remusdb.core.pages import encode_pages
from remusdb.core.pagework import PAGE_BYTES

log = logging.getLogger(__name__)
PAGES, ROUNDS = 2000, 21
LINES_CHANGED = (1, 4, 64)  # of 64: a row, a few rows, everything


def took_s(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@pytest.mark.parametrize("lines", LINES_CHANGED)
def test_encode(lines: int) -> None:
    """Logs `encode_over_memcpy` and `encode_over_numpy`: throughput, so more is better."""
    built = native.kernels
    assert built is not None, "remusdb/native/kernels.c was not built"
    random = np.random.default_rng(1)
    numbers = np.sort(random.choice(64_000, PAGES, replace=False))
    shadow = random.integers(0, 256, (64_000, PAGE_BYTES), np.uint8)
    content, copy = shadow[numbers], np.empty((PAGES, PAGE_BYTES), np.uint8)
    found: dict[str, list[float]] = {"memcpy": [], "native": [], "numpy": []}
    try:
        for round_ in range(ROUNDS):
            for name, kernels in (("native", built), ("numpy", None)):
                content[:, : lines * 64 : 8] ^= np.uint8(1 + round_)  # a byte in each word
                native.kernels = kernels
                found[name].append(took_s(lambda: encode_pages(0, numbers, content, shadow, "delta")))
            found["memcpy"].append(took_s(lambda: np.copyto(copy, content)))
    finally:
        native.kernels = built
    median = {name: statistics.median(times) for name, times in found.items()}
    over = {name: round(median[name] / median["native"], 3) for name in ("memcpy", "numpy")}
    log.info(
        "%d lines of 64 changed in %d pages: encode_over_memcpy %s, encode_over_numpy %s (native %.2f ms)",
        lines, PAGES, over["memcpy"], over["numpy"], 1e3 * median["native"],
    )  # fmt: skip
