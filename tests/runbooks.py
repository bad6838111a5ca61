# SPDX-License-Identifier: Apache-2.0
"""Reads docs/runbooks/*.md: what each says is typed on which host, what that prints, and in which situation.

    <!-- situation: db1 is protected; host a dies -->     a VM of its own, and what befalls it
    <!-- then: host a boots -->                           what happens at this place of the text
    ```console                                            commands; a block that says `not run: WHY` is skipped
    a$ remusdb status                                     typed on host a
    VM ...                                                what it prints: `...` is anything on a line,
    ...                                                   and alone on a line any number of lines
    ```

Spaces count as one, however many; lines without anything are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "runbooks"
INDEX = FOLDER / "README.md"
_NOTE = re.compile(r"\s*<!-- (situation|then): (.+) -->")
_FENCE = re.compile(r"\s*```(.*)")
_PROMPT = re.compile(r"(\w+)\$ (.+)")


@dataclass(frozen=True)
class Command:
    """One line that is typed on a host; `printed` is what it says, `line` its place in the file."""

    host: str
    text: str
    printed: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class Happens:
    """Something that befalls the pair at this place, in the runbook's own words."""

    what: str


@dataclass
class Situation:
    """What befalls a pair, and what is typed then, in order."""

    begins: list[str]
    steps: list[Command | Happens] = field(default_factory=list)


@dataclass
class Runbook:
    """One file. `skipped`: commands that are not run, each with why."""

    name: str
    situations: list[Situation] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def commands(self) -> list[Command]:
        """All that are run."""
        return [step for one in self.situations for step in one.steps if isinstance(step, Command)]


def runbooks() -> list[Path]:
    """The files, without their index."""
    return [path for path in sorted(FOLDER.glob("*.md")) if path != INDEX]


def parse(name: str, text: str) -> Runbook:
    """ValueError, with the line, for what is not as above."""
    book = Runbook(name)
    block: list[tuple[int, str]] | None = None
    info = ""
    for number, line in enumerate(text.splitlines(), 1):
        if fence := _FENCE.match(line):
            if block is None:
                block, info = [], fence[1]
            else:
                _end_of_block(book, info, block)
                block = None
        elif block is not None:
            block.append((number, line.strip()))
        elif note := _NOTE.match(line):
            named = [part.strip() for part in note[2].split(";")]
            if note[1] == "situation":
                book.situations.append(Situation(named))
            else:
                _last(book, number).steps += [Happens(what) for what in named]
    if block is not None:
        raise ValueError(f"{name}: a block has no end")
    return book


def _end_of_block(book: Runbook, info: str, block: Sequence[tuple[int, str]]) -> None:
    kind, _, why = info.partition(" not run: ")
    if kind != "console":
        return
    found: list[Command] = []
    for number, line in block:
        if prompt := _PROMPT.match(line):
            found.append(Command(prompt[1], prompt[2], (), number))
        elif not found:
            raise ValueError(f"{book.name}:{number}: a block begins with a prompt: {line!r}")
        elif line:
            last = found.pop()
            found.append(Command(last.host, last.text, (*last.printed, line), last.line))
    if why:
        book.skipped |= {command.text: why for command in found}
    else:
        _last(book, block[0][0]).steps += found


def _last(book: Runbook, number: int) -> Situation:
    if not book.situations:
        raise ValueError(f"{book.name}:{number}: before any situation")
    return book.situations[-1]


def says(printed: Sequence[str], output: str) -> bool:
    """Whether `output` is what a runbook says. Where it says nothing, anything is."""
    if not printed:
        return True
    lines = [_plain(line) + "\n" for line in output.splitlines() if line.strip()]
    pattern = "".join(r"(?:.*\n)*" if line == "..." else _line(line) + r"\n" for line in printed)
    return re.fullmatch(pattern, "".join(lines)) is not None


def _plain(line: str) -> str:
    return " ".join(line.split())


def _line(line: str) -> str:
    return re.escape(_plain(line)).replace(r"\.\.\.", ".*").replace(r"\ .*", ".*").replace(r".*\ ", ".*")
