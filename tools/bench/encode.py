# SPDX-License-Identifier: Apache-2.0
"""From captured pages to payloads: C and numpy in turns, against a plain copy of the same pages, in one run.

    python -m tools.bench.encode

One JSON object on stdout. Throughput as ratios, so more is better: `encode_over_memcpy`, `encode_over_numpy`.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from remusdb import native
from remusdb.core.pagecache import PageCache
from remusdb.core.pages_encode import encode_pages
from remusdb.core.pagework import LINE_BYTES, PAGE_BYTES

PAGES, BLOCK_PAGES, ROUNDS = 2000, 64_000, 21
LINES_CHANGED = (1, 4, 64)  # of 64: a row, a few rows, everything
USUAL = 4  # what the report's keys are of


def measure(lines: int) -> dict[str, float]:
    """With so many lines of each page changed, a byte in each word of them. RuntimeError where the C is not built."""
    built = native.kernels
    if built is None:
        raise RuntimeError("remusdb/native/kernels.c was not built: tools/venv.sh says why")
    random = np.random.default_rng(1)
    numbers = np.sort(random.choice(BLOCK_PAGES, PAGES, replace=False))
    cache = PageCache(BLOCK_PAGES, BLOCK_PAGES)
    cache.content[:] = random.integers(0, 256, (BLOCK_PAGES, PAGE_BYTES), np.uint8)
    content, copy = cache.content[numbers], np.empty((PAGES, PAGE_BYTES), np.uint8)
    found: dict[str, list[float]] = {"memcpy": [], "native": [], "numpy": []}
    try:
        for round_ in range(ROUNDS):
            for name, kernels in (("native", built), ("numpy", None)):
                content[:, : lines * LINE_BYTES : 8] ^= np.uint8(1 + round_)
                native.kernels = kernels
                found[name].append(_took_s(lambda: encode_pages(0, numbers, content, cache)))
            found["memcpy"].append(_took_s(lambda: np.copyto(copy, content)))
    finally:
        native.kernels = built
    median = {name: statistics.median(times) for name, times in found.items()}
    over = {f"encode_over_{name}": round(median[name] / median["native"], 3) for name in ("memcpy", "numpy")}
    return {**over, "encode_ms": round(1e3 * median["native"], 2)}


def report() -> dict[str, Any]:
    """The keys of a usual page, and all of it."""
    found = {str(lines): measure(lines) for lines in LINES_CHANGED}
    usual = {key: value for key, value in found[str(USUAL)].items() if key != "encode_ms"}
    return {**usual, "encode_by_lines": found}


def _took_s(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps(report()))
