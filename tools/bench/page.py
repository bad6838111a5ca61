# SPDX-License-Identifier: Apache-2.0
"""The report as one page of HTML that needs nothing else: build/bench/report.html."""

from __future__ import annotations

import html
import statistics
from typing import Any

from tools.bench.summary import NOT_LOADS, UNPROTECTED

_STYLE = """body{font:15px/1.5 system-ui;margin:2em auto;max-width:60em;padding:0 1em;color-scheme:light dark}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #8884}
th:first-child,td:first-child{text-align:left}svg{overflow:visible}rect{fill:#3778c2}text{fill:currentColor;font-size:13px}"""
_BAR, _WIDE, _LABEL = 22, 480, 130

Rounds = list[dict[str, Any]]


def of(found: dict[str, Any], rounds: Rounds) -> str:
    """`found`: the report's first keys; `rounds`: what was measured in each."""
    loads = [key for key in rounds[0][UNPROTECTED] if key not in NOT_LOADS]
    parts = [
        _table("Keys", [[key, _short(value)] for key, value in found.items() if not isinstance(value, dict | list)])
    ]
    for load in loads:
        bars = [(mode, [float(one[mode][load]["tps"]) for one in rounds]) for mode in rounds[0]]
        parts.append(f"<h2>{html.escape(load)}: transactions a second</h2>{_bars(bars)}")
        for key, what in (("latency_ms_p50", "the median"), ("latency_ms_p99", "1 % take longer")):
            bars = [(mode, [float(one[mode][load][key]) for one in rounds]) for mode in rounds[0]]
            parts.append(f"<h3>{html.escape(load)}: ms for one, {what}</h3>{_bars(bars)}")
    for way, text in (("out", "from the VM to a client"), ("in", "from a client to the VM")):
        bars = [(mode, [float(one[mode]["bulk"][way]) for one in rounds]) for mode in rounds[0]]
        parts.append(f"<h2>Bulk {text}: MB/s</h2>{_bars(bars)}")
    parts += _elsewhere(found)
    protected = [mode for mode in rounds[0] if mode != UNPROTECTED]
    for mode in protected:
        stages = rounds[-1][mode]["idle"].get("stages_ms", {})
        bars = [(name, [float(ms)]) for name, ms in stages.items()]
        parts.append(f"<h2>{html.escape(mode)}: what a cut takes, idle, ms</h2>{_bars(bars)}")
    return f"<!doctype html><meta charset=utf-8><title>remusdb bench</title><style>{_STYLE}</style>" + (
        "<h1>What protection costs</h1><p>Medians; a thin line is the spread of the rounds.</p>" + "".join(parts)
    )


def _elsewhere(found: dict[str, Any]) -> list[str]:
    """What was not measured in the turns of the database's VM, where it was at all."""
    parts = []
    if scans := found.get("scan", {}).get("turns"):
        bars = [(mode, [float(turn["mb_s"]) for turn in turns]) for mode, turns in scans.items()]
        parts.append(f"<h2>A table larger than memory is scanned: MB/s</h2>{_bars(bars)}")
    for way, loads in found.get("syncrep", {}).get("turns", {}).items():
        bars = [(load, [float(turn["tps"]) for turn in turns]) for load, turns in loads.items()]
        parts.append(f"<h2>PostgreSQL's own replication, {html.escape(way)}: transactions a second</h2>{_bars(bars)}")
    if failover := found.get("syncrep", {}).get("failover"):
        rows = [[key, _short(value)] for key, value in failover.items()]
        parts.append(_table("PostgreSQL's own replication, the primary's host killed", rows))
    return parts


def _table(title: str, rows: list[list[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<h2>{html.escape(title)}</h2><table>{body}</table>"


def _bars(bars: list[tuple[str, list[float]]]) -> str:
    most = max((max(values) for _, values in bars), default=0.0) or 1.0
    drawn = []
    for row, (name, values) in enumerate(bars):
        top, value = row * _BAR, statistics.median(values)
        low, high = (_LABEL + _WIDE * end / most for end in (min(values), max(values)))
        drawn.append(
            f'<text x="0" y="{top + 15}">{html.escape(name)}</text>'
            f'<rect x="{_LABEL}" y="{top + 3}" width="{_WIDE * value / most:.1f}" height="{_BAR - 6}"/>'
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{top + 11}" y2="{top + 11}" stroke="currentColor"/>'
            f'<text x="{_LABEL + _WIDE * max(values) / most + 6:.1f}" y="{top + 15}">{_short(value)}</text>'
        )
    return f'<svg role="img" width="{_LABEL + _WIDE + 80}" height="{len(bars) * _BAR}">{"".join(drawn)}</svg>'


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
