# SPDX-License-Identifier: Apache-2.0
"""What the verbs share: their options, and asking a daemon of this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from remusdb.control import ProgressFn, Request, call
from remusdb.control.codec import Reply
from remusdb.names import VmName, require_name

DEFAULT_RUN_DIR = Path("/run/remusdb")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """What was said before the verb."""

    run_dir: Path | None = None
    debug: bool = False


def fill(ctx: click.Context) -> Settings:
    """The settings of this run, made if the verb was called without the group."""
    settings: Settings = ctx.ensure_object(Settings)
    return settings


def run_dir_option(verb: F) -> F:
    """`--run-dir` after the verb as well as before it."""

    def keep(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
        if value is not None:
            fill(ctx).run_dir = value

    option = click.option(
        "--run-dir",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=keep,
        help=f"Where the daemons' sockets are.  [default: {DEFAULT_RUN_DIR}, or REMUSDB_RUN_DIR]",
    )
    return option(verb)


def _name(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> VmName | None:
    return None if value is None else require_name(value)


vm_argument = click.argument("vm", callback=_name)
vm_or_all_argument = click.argument("vm", callback=_name, required=False)
json_option = click.option("--json", "as_json", is_flag=True, help="The result as JSON.")


def socket_of(daemon: str) -> Path:
    """The control socket of this machine's `host` or `agent` daemon."""
    return (fill(click.get_current_context()).run_dir or DEFAULT_RUN_DIR) / f"{daemon}.sock"


def ask(
    daemon: str,
    request: Request[Reply],
    on_progress: ProgressFn | None = None,
    timeout_s: float | None = 30.0,
) -> Reply:
    """One request to a daemon of this machine."""
    return call(socket_of(daemon), request, on_progress, timeout_s)
