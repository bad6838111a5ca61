# SPDX-License-Identifier: Apache-2.0
"""Progress for a person, on stderr: stdout is for results."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from remusdb.errors import RemusError

TROUBLE = (RemusError, RuntimeError, OSError, subprocess.SubprocessError)  # what a lab and the product may raise

console = Console(stderr=True, highlight=False)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Shows that something is going on, and how long it took once it is done."""
    began = time.monotonic()
    try:
        with console.status(text):
            if not console.is_terminal:
                console.print(f"  … {text}", soft_wrap=True)
            yield
    except BaseException:
        console.print(f"  [red]✗[/red] {text}  [dim]{time.monotonic() - began:.1f} s[/dim]", soft_wrap=True)
        raise
    console.print(f"  [green]✓[/green] {text}  [dim]{time.monotonic() - began:.1f} s[/dim]", soft_wrap=True)


def say(text: str) -> None:
    """A line on its own."""
    console.print(text, soft_wrap=True)


def run_to_exit(main: Callable[[], int], what: str) -> NoReturn:
    """A program's end: `main`'s exit code, or a sentence in place of a traceback."""
    try:
        sys.exit(main())
    except TROUBLE as error:
        say(f"[bold red]{what} could not be run:[/bold red] {escape(str(error))}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
