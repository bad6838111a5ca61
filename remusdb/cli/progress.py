# SPDX-License-Identifier: Apache-2.0
"""Progress of a long request on stderr: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from remusdb.cli import words
from remusdb.cli.say import say
from remusdb.control import Progress as Told
from remusdb.printable import printable

LINES_PER_STEP = 4


class Steps:
    """Shows the progress of one request as it comes."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bars: Progress | None = None
        if console.is_terminal:
            columns = (_text("{task.description:<24}"), BarColumn(), _text("{task.fields[of]}"))
            self._bars = Progress(*columns, TimeElapsedColumn(), console=console)
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, int] = {}

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def show(self, told: Told) -> None:
        """One report of the daemon."""
        step, unit, done, total = printable(told.step), printable(told.unit), told.done, told.total
        of = _of(done, total, unit) if total else ""
        if self._bars:
            if step not in self._tasks:
                self._tasks[step] = self._bars.add_task(step, of=of)
            self._bars.update(self._tasks[step], completed=done, total=total or None, of=of)
            return
        part = int(LINES_PER_STEP * done / total) if total else 0
        if self._told.get(step) != part:
            self._told[step] = part
            say(f"{step}: {of}" if of else step, err=True)


def _text(template: str) -> TextColumn:
    return TextColumn(template, markup=False)  # square brackets in a name are no command


def _of(done: float, total: float, unit: str) -> str:
    if unit == "bytes":
        return f"{words.size(done)} of {words.size(total)}"
    return f"{done:g} of {total:g} {unit}"
