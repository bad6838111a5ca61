# SPDX-License-Identifier: Apache-2.0
"""Progress for a person, on stderr: stdout is for results."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

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
