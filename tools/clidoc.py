# SPDX-License-Identifier: Apache-2.0
"""Writes docs/cli.md from the command line itself: every verb, as `--help` shows it.

python -m tools.clidoc
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from remusdb.cli.main import cli

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
WIDTH = 100  # columns
HEAD = """\
# The command line

Made by `python -m tools.clidoc` from `remusdb --help` and that of each verb: change those, not this page. What
`--json` prints: [json.md](json.md). On which host a verb is said, and what for: the table in the
[README](../README.md). In an emergency: [runbooks](runbooks/README.md).
"""


def page() -> str:
    """The whole of it."""
    return HEAD + "".join(f"\n## {name}\n\n```\n{text}\n```\n" for name, text in _texts("remusdb", cli, None))


def _texts(name: str, command: click.Command, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    """A command and those below it, each with its help."""
    context = command.make_context(name.rpartition(" ")[2], [], parent, resilient_parsing=True)
    context.terminal_width = context.max_content_width = WIDTH
    yield name, command.get_help(context)
    if isinstance(command, click.Group):
        for below in sorted(command.commands):
            yield from _texts(f"{name} {below}", command.commands[below], context)


if __name__ == "__main__":
    PAGE.write_text(page())
