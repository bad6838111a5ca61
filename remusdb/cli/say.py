# SPDX-License-Identifier: Apache-2.0
"""What the command line shows. Nothing else in it writes to a terminal: what is shown may come from another host, a
guest, QEMU, the arbiter or a file, and must not be able to command the terminal, nor look like a line of ours."""

from __future__ import annotations

import sys
from typing import Any

import click

from remusdb.printable import json_text, printable

LINE_MAX_BYTES = 64 << 10  # one value of `status VM` may list every disk that was kept


def say(*lines: str, err: bool = False) -> None:
    """Each of them as one line: on stdout, or on stderr. A question mark for what the terminal has no letter for."""
    encoding = (sys.stderr if err else sys.stdout).encoding or "utf-8"
    for line in lines:
        click.echo(printable(line, LINE_MAX_BYTES).encode(encoding, "replace").decode(encoding), err=err)


def print_json(result: Any) -> None:
    """A result for programs: nothing in it is left out, and all of it is ASCII."""
    click.echo(json_text(result, indent=2))
