# SPDX-License-Identifier: Apache-2.0
"""One live bar for a long work on a terminal: what is done now, how much of it, how fast, and how long it may take.

A step that is over leaves a line above the bar. Imported when there is something to show: rich takes its time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from remusdb.cli import words
from remusdb.cli.progress import amount, counted
from remusdb.cli.say import say
from remusdb.control import Progress as Told
from remusdb.printable import printable


class Bar:
    """The bar of one request."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        columns = (_text("{task.description:<24}"), BarColumn(), _text("{task.fields[of]}"), _Pace())
        self.progress = Progress(
            *columns,
            console=console or Console(stderr=True),
            get_time=clock,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._clock = clock
        self._task = self.progress.add_task("", visible=False, of="", unit="")
        self._told: Told | None = None
        self._began = 0.0

    def start(self) -> None:
        """From now on it is drawn."""
        self.progress.start()

    def stop(self) -> None:
        """It goes, and what it showed last stays as a line."""
        self.progress.stop()
        if self._told is not None:
            self._leave(self._told)

    def aside(self, write: Callable[[], None]) -> None:
        """Write something else, to where it goes, while the bar is away."""
        was_there = self.progress.live.is_started
        self.progress.stop()
        write()
        if was_there:
            self.progress.start()

    def show(self, told: Told) -> None:
        """One report of the daemon."""
        step, unit = printable(told.step), printable(told.unit)
        total = told.total if counted(told) else None  # None: it moves, and says nothing
        if self._told is None or told.step != self._told.step:
            if self._told is not None and (not counted(self._told) or self._told.done >= self._told.total):
                told_last = self._told
                self.aside(lambda: self._leave(told_last))
            self._began = self._clock()
            self.progress.reset(self._task, total=total, description=step, visible=True, unit=unit, of="")
        self._told = told
        self.progress.update(self._task, completed=told.done, total=total, of=amount(told))

    def _leave(self, told: Told) -> None:
        """A line for a step that is over."""
        took = words.age(1000 * (self._clock() - self._began))
        say(": ".join(filter(None, [told.step, amount(told)])) + f", {took}", err=True)


class _Pace(ProgressColumn):
    """How fast, and how long it may take: as far as either can be said."""

    def render(self, task: Task) -> Text:
        """As rich has it."""
        rate = f"{words.size(task.speed)}/s" if task.fields["unit"] == "bytes" and task.speed else ""
        left = task.time_remaining
        said = [rate, f"{words.age(1000 * left)} left" if left else ""]
        return Text(", ".join(filter(None, said)))


def _text(template: str) -> TextColumn:
    return TextColumn(template, markup=False)  # square brackets in a name are no command
