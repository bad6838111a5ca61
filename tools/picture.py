# SPDX-License-Identifier: Apache-2.0
"""The demo as a picture: two hosts, what goes between them, and the heartbeat of each client. No clock, no terminal.

A picture is a value, made again for each look; `draw` turns it into lines with rich's markup, always as many. A
client's heartbeat is a row of marks, the newest on the right: how many transactions were acknowledged to it in
each of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.markup import escape

from remusdb.control.status import StandbyStatus
from tools.lab.view import View

MARK_S: Final = 0.25  # of time, a mark: a takeover takes a few of them
LEAST_COLUMNS: Final = 80
MOST_COLUMNS: Final = 110
EVENTS: Final = 7  # shown, the newest
BETWEEN: Final = 20  # columns between the hosts
WAITS_S: Final = 0.5  # a client without an acknowledgement for so long is told to wait
_BARS: Final = "▁▂▃▄▅▆▇█"
_NAME, _FIGURES = 10, 24  # columns before and behind a client's marks


@dataclass(frozen=True)
class Host:
    """A host, as its daemons tell it. `runs`: the VM speaks there; `follows`: its paused standby is there."""

    name: str
    up: bool = True
    state: str = ""
    runs: bool = False
    follows: bool = False
    term: int = 0
    epoch: int = 0


@dataclass(frozen=True)
class Client:
    """`beats`: acknowledgements in each mark, the oldest first; `acked`: all of them; `silent_s`: since the last."""

    name: str
    beats: Sequence[int]
    acked: int
    silent_s: float


@dataclass(frozen=True)
class Happened:
    """An event: when, since the beginning; and what, with markup."""

    at_s: float
    text: str


@dataclass(frozen=True)
class Picture:
    """All there is to see at one moment. `killed_marks_ago`: None before the kill."""

    title: str
    at_s: float
    hosts: tuple[Host, Host]
    clients: Sequence[Client] = ()
    events: Sequence[Happened] = ()
    killed: str = ""
    killed_marks_ago: int | None = None


def look(name: str, view: View, up: bool) -> Host:
    """A host of what its daemons told just now."""
    told = view.told
    if not up or told is None:
        return Host(name, up)
    if isinstance(told, StandbyStatus):
        runs, follows = told.state == "promoted" and told.resumed_at_ns is not None, told.state in ("seeding", "ready")
    else:
        runs, follows = told.running and told.state != "fenced", False
    return Host(name, up, told.state, runs, follows, told.term, told.committed)


def marks(columns: int) -> int:
    """How many marks of a client's heartbeat fit into so many columns."""
    return columns - _NAME - _FIGURES


def beats(acked_at_s: Sequence[float], now_s: float, count: int) -> list[int]:
    """Acknowledgements in each of the last `count` marks. A mark has fixed ends, so that what is shown stays."""
    newest = int(now_s / MARK_S)
    found = [0] * count
    for at_s in reversed(acked_at_s):
        back = newest - int(at_s / MARK_S)
        if back >= count:
            break
        if back >= 0:
            found[count - 1 - back] += 1
    return found


def draw(picture: Picture, columns: int) -> Iterator[str]:
    """Its lines, with markup, none longer than `columns` (LEAST_COLUMNS at the least)."""
    minutes, seconds = divmod(int(picture.at_s), 60)
    clock = f"{minutes}:{seconds:02d}"
    yield f"[bold]{escape(picture.title[: columns - 8]):<{columns - len(clock) - 1}}[/bold] {clock}"
    yield from _hosts(picture, columns)
    yield from _clients(picture, columns)
    shown = picture.events[-EVENTS:]
    yield from (f"{_clock(one.at_s)} {one.text}" for one in shown)
    yield from [""] * (EVENTS - len(shown))


def _clock(at_s: float) -> str:
    return f"[dim]{int(at_s) // 60:>3}:{int(at_s) % 60:02d}[/dim]"


def _hosts(picture: Picture, columns: int) -> Iterator[str]:
    inner = (columns - BETWEEN) // 2 - 2
    left, right = ([*_box(host, inner)] for host in picture.hosts)
    for one, between, other in zip(left, _between(*picture.hosts), right, strict=True):
        yield f"{one}{between}{other}"


def _box(host: Host, inner: int) -> Iterator[str]:
    color = "red" if not host.up else "green" if host.runs else "cyan" if host.follows else "dim"
    if not host.up:
        said = ["✗ no power, no network", "every process of it is gone", ""]
    elif host.runs and host.state == "held":
        color, said = "yellow", ["■ it runs, and nobody hears it", "its output is held", f"term {host.term}"]
    elif host.runs:
        said = ["● the VM runs here", _state(host), f"term {host.term}" if host.term else ""]
    elif host.follows:
        said = ["○ a paused copy of it, warm", _state(host), f"term {host.term}, holds epoch {host.epoch}"]
    else:
        said = ["", _state(host), ""]
    head = f"─ host {host.name} "
    yield f"[{color}]╭{head:─<{inner}}╮[/{color}]"
    for line in said:
        yield f"[{color}]│[/{color}] {escape(line[: inner - 1]):<{inner - 1}}[{color}]│[/{color}]"
    yield f"[{color}]╰{'─' * inner}╯[/{color}]"


def _state(host: Host) -> str:
    words = {"unprotected": "not protected", "promoted": "took it over", "seeding": "the first copy is made"}
    return words.get(host.state, host.state)


def _between(one: Host, other: Host) -> list[str]:
    """Five lines of what goes from the first host to the other."""
    lines = ["", "", "", "", ""]
    if not one.up or not other.up:
        lines[2] = "[red]✗[/red]"
        return [f"{' ' * 9}{lines[2]}{' ' * 10}" if line else " " * BETWEEN for line in lines]
    if one.runs and other.follows:
        lines[1] = "memory, disks ─▶" if one.state == "seeding" else f"epoch {one.epoch} ─▶"
        lines[3] = "" if one.state == "seeding" else "◀─ all is here"
    return [f"{line:^{BETWEEN}}" for line in lines]


def _clients(picture: Picture, columns: int) -> Iterator[str]:
    count = marks(columns)
    if not picture.clients:
        yield from ("", "")
        return
    yield f"{len(picture.clients)} clients: what each was told is done, in {MARK_S:g} s a mark"
    most = max((beat for one in picture.clients for beat in one.beats), default=1) or 1
    for one in picture.clients:
        bars = "".join(_bar(beat, most) for beat in one.beats[-count:]).rjust(count)
        waits = f"waits {one.silent_s:.1f} s" if one.silent_s > WAITS_S else ""
        bars = re.sub("(·+)", rf"[{'yellow' if waits else 'dim'}]\1[/]", bars)
        yield f"{escape(one.name):<{_NAME}}{bars} {one.acked:>7} [yellow]{waits:<{_FIGURES - 9}}[/yellow]"
    ago = picture.killed_marks_ago
    if ago is None or ago >= count:
        yield ""
        return
    at, words = _NAME + count - 1 - ago, picture.killed
    line = f"{words} ▲".rjust(at + 1) if at > len(words) else f"{'▲':>{at + 1}} {words}"
    yield f"[bold red]{escape(line)}[/bold red]"


def _bar(beat: int, most: int) -> str:
    return _BARS[min(len(_BARS) - 1, beat * len(_BARS) // (most + 1))] if beat else "·"
