# SPDX-License-Identifier: Apache-2.0
"""Figures and tables in words, for people."""

from __future__ import annotations

import time
from collections.abc import Sequence

NOTHING = "-"


def age(ms: float | None) -> str:
    """`40 ms`, `2.1 s`, `3 min 5 s`, `2 h 10 min`."""
    if ms is None:
        return NOTHING
    if ms < 1000:
        return f"{ms:.0f} ms"
    seconds = ms / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def moment(at_ns: int) -> str:
    """When something was, by the local clock: `2026-11-27 09:40:12.345`."""
    seconds, rest_ns = divmod(at_ns, 10**9)
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))}.{rest_ns // 10**6:03d}"


def size(count: float | None) -> str:
    """`0 B`, `51 KiB`, `1.5 GiB`."""
    if count is None:
        return NOTHING
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    value = float(count)
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if value >= 10 or units[0] == "B" else f"{value:.1f} {units[0]}"


def number(value: float | None) -> str:
    """A plain figure, or a dash."""
    return NOTHING if value is None else f"{value:g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns; the last column runs as wide as it is."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = (
        [cell.ljust(width) for cell, width in zip(line[:-1], widths[:-1], strict=True)] + line[-1:] for line in lines
    )
    return ["  ".join(line).rstrip() for line in padded]
