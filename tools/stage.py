# SPDX-License-Identifier: Apache-2.0
"""Where a trial shows what it does: plain lines (`Plain`), or a living picture in a terminal (`Living`).

The picture is painted by a thread of its own, four times a second, from what both hosts' daemons say and what the
clients wrote down. Only what differs from the last one is sent to the terminal. It changes nothing of the trial.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol, Self

from rich.console import Console
from rich.text import Text

from remusdb.printable import printable
from tools import show
from tools.lab.product import HOSTS, Product
from tools.lab.view import View
from tools.load import SERVERS, Load, Tail
from tools.picture import LEAST_COLUMNS, MARK_S, MOST_COLUMNS, Client, Happened, Host, Picture, beats, draw, look, marks

LEAST_ROWS = 24
NO_ANSWER_S = 0.3  # a daemon that takes longer is shown as it was


class Stage(Protocol):
    """What a trial tells while it runs."""

    def step(self, text: str) -> AbstractContextManager[None]:
        """Something goes on, as long as the context lasts."""

    def say(self, text: str) -> None:
        """A line on its own, with markup."""

    def hosts(self, product: Product, vm: str) -> None:
        """These hosts' daemons can be asked about this VM from now on."""

    def clients(self, load: Load) -> None:
        """These clients work from now on."""

    def rest(self) -> None:
        """The clients have ended."""

    def killed(self, host: str, what: str, at_ns: int, up: bool) -> None:
        """That was killed at this monotonic time; `up`: the host goes on all the same."""


class Plain:
    """A line when something begins, and one when it is done."""

    def step(self, text: str) -> AbstractContextManager[None]:
        """As `Stage` has it."""
        return show.step(text)

    def say(self, text: str) -> None:
        """As `Stage` has it."""
        show.say(text)

    def hosts(self, product: Product, vm: str) -> None:
        """They are not shown."""

    def clients(self, load: Load) -> None:
        """They are not shown."""

    def rest(self) -> None:
        """They are not shown."""

    def killed(self, host: str, what: str, at_ns: int, up: bool) -> None:
        """It is told by a line."""


class Living:
    """The picture. What was painted last stays on the terminal, and in `kept` as plain text."""

    def __init__(self, title: str, console: Console, kept: Path) -> None:
        self._console, self._kept = console, kept
        self._painter = Painter(console)
        self._began_ns = time.monotonic_ns()
        self._picture = Picture(title, 0.0, (Host("a"), Host("b")))
        self._events: list[Happened] = []
        self._asked: tuple[Product, str] | None = None
        self._tail: Tail | None = None
        self._acked: list[list[float]] = []
        self._killed: tuple[str, float] | None = None
        self._rests_s: float | None = None
        self._down: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._paint, name="picture", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._show()
        self._painter.close()

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """As `Stage` has it: the sign of its line changes when it is done."""
        at, began = len(self._events), self._now_s()
        self._events.append(Happened(began, f"… {text}"))
        sign = "[red]✗[/red]"
        try:
            yield
            sign = "[green]✓[/green]"
        finally:
            took = f"[dim]{self._now_s() - began:.1f} s[/dim]"
            self._events[at] = Happened(began, f"{sign} {text}  {took}")

    def say(self, text: str) -> None:
        """As `Stage` has it."""
        self._events.append(Happened(self._now_s(), text.strip()))

    def hosts(self, product: Product, vm: str) -> None:
        """As `Stage` has it."""
        self._asked = product, vm

    def clients(self, load: Load) -> None:
        """As `Stage` has it."""
        self._acked = [[] for _ in range(load.clients)]
        self._tail = load.tail()

    def rest(self) -> None:
        """As `Stage` has it: their heartbeats stand still from now on."""
        self._rests_s = self._now_s()

    def killed(self, host: str, what: str, at_ns: int, up: bool) -> None:
        """As `Stage` has it."""
        self._killed = what, (at_ns - self._began_ns) / 1e9
        if not up:
            self._down.add(host)

    def _now_s(self) -> float:
        return (time.monotonic_ns() - self._began_ns) / 1e9

    def _paint(self) -> None:
        while not self._over.wait(MARK_S):
            self._show()

    def _show(self) -> None:
        columns = min(self._console.size.width - 1, MOST_COLUMNS)
        if self._asked:
            product, vm = self._asked
            self._picture = replace(self._picture, hosts=(self._look(product, vm, 0), self._look(product, vm, 1)))
        now_s = self._now_s()
        shown_s = now_s if self._rests_s is None else self._rests_s
        killed = self._killed or ("", shown_s)
        self._picture = replace(
            self._picture,
            at_s=now_s,
            clients=self._clients(shown_s, marks(columns)),
            events=tuple(self._events),
            killed=killed[0],
            killed_marks_ago=int(shown_s / MARK_S) - int(killed[1] / MARK_S) if self._killed else None,
        )
        lines = [*draw(self._picture, columns)]
        self._painter.paint(lines)
        with contextlib.suppress(OSError):
            self._kept.write_text("\n".join(Text.from_markup(line).plain.rstrip() for line in lines) + "\n")

    def _look(self, product: Product, vm: str, which: int) -> Host:
        name, before = HOSTS[which], self._picture.hosts[which]
        if name in self._down:
            return Host(name, up=False)
        view: View = product.view(name, vm, NO_ANSWER_S)
        return before if view.told is None and before.state else look(name, view, True)

    def _clients(self, now_s: float, count: int) -> tuple[Client, ...]:
        for ack in self._tail.new() if self._tail else ():
            self._acked[ack.client - 1].append((ack.at_ns - self._began_ns) / 1e9)
        return tuple(
            Client(
                f"{number} {'IPv6' if ':' in SERVERS[(number - 1) % len(SERVERS)] else 'IPv4'}",
                beats(acked, now_s, count),
                len(acked),
                now_s - acked[-1] if acked and self._rests_s is None else 0.0,
            )
            for number, acked in enumerate(self._acked, 1)
        )


class Painter:
    """Puts lines over those that it put there last; as few letters as do it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: list[str] = []
        self._width = 0

    def paint(self, lines: list[str]) -> None:
        """Show these, of rich's markup; each is one line, whatever is in it."""
        rendered = [self._rendered(line) for line in lines]
        width, out = self._console.size.width, []
        if width != self._width or len(rendered) != len(self._shown):  # what is there now, nobody can tell
            out = ["\x1b[?25l\x1b[2J\x1b[H", *(f"{line}\n" for line in rendered)]
        elif rendered != self._shown:
            out.append(f"\x1b[{len(rendered)}F")
            for line, before in zip(rendered, self._shown, strict=True):
                out.append("\n" if line == before else f"{line}\x1b[K\n")
        self._shown, self._width = rendered, width
        if out:
            self._console.file.write("".join(out))
            self._console.file.flush()

    def close(self) -> None:
        """The cursor is there again."""
        self._console.file.write("\x1b[?25h")
        self._console.file.flush()

    def _rendered(self, line: str) -> str:
        text = Text.from_markup(line)
        safe = Text(printable(text.plain), spans=text.spans)
        with self._console.capture() as capture:
            self._console.print(safe, end="", no_wrap=True, overflow="crop", crop=True, highlight=False)
        return capture.get()


def can_live(console: Console) -> bool:
    """Whether a picture can be painted there."""
    size = console.size
    utf8 = (console.encoding or "").lower().replace("-", "") == "utf8"
    return console.is_terminal and utf8 and size.width > LEAST_COLUMNS and size.height >= LEAST_ROWS
