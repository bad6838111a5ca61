# SPDX-License-Identifier: Apache-2.0
"""Progress of a long work on stderr: one live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from remusdb.cli import words
from remusdb.cli.say import say
from remusdb.control import Progress as Told
from remusdb.printable import printable

if TYPE_CHECKING:
    from remusdb.cli.bar import Bar

LINES_PER_STEP = 4


class Steps:
    """Shows the progress of one work as it comes."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            from remusdb.cli.bar import Bar  # late: rich is slow to import, and most verbs are over at once

            self._bar = Bar()
        self._told: dict[str, int] = {}

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, line: str) -> None:
        """A result that there is already, on stdout."""
        if self._bar:
            self._bar.aside(lambda: say(line))
        else:
            say(line)

    def show(self, told: Told) -> None:
        """One report: of the daemon, or of the verb itself."""
        if self._bar:
            self._bar.show(told)
            return
        step, of = printable(told.step), amount(told)
        part = int(LINES_PER_STEP * told.done / told.total) if told.total else 0
        if self._told.get(step) != part:
            self._told[step] = part
            say(f"{step}: {of}" if of else step, err=True)


def counted(told: Told) -> bool:
    """Whether it is known how much there is to do, and a part of it can be done."""
    return told.total > 1 or (told.total > 0 and told.unit == "bytes")


def amount(told: Told) -> str:
    """`3 of 7 VMs`; empty where nobody knows, or it is a single one."""
    if not counted(told):
        return ""
    if told.unit == "bytes":
        return f"{words.size(told.done)} of {words.size(told.total)}"
    return f"{told.done:g} of {told.total:g} {printable(told.unit)}"
