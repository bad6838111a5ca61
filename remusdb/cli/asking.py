# SPDX-License-Identifier: Apache-2.0
"""What the verbs share: their options, and asking a daemon of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from remusdb.control import ProgressFn, Request, call
from remusdb.control.api import HostStatus, OfVm
from remusdb.control.codec import Reply
from remusdb.errors import NotProtected, PeerRefused, PeerUnreachable, RemusError
from remusdb.names import VmName, require_name

PRIMARY = ("seeding", "protected", "held")  # states in which the VM runs here
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
state_dir_option = click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/remusdb"),
    show_default=True,
    help="Where the daemons keep their state: this folder, or its folders `host` and `agent`.",
)


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


def ask_backup(request: OfVm[Reply], on_progress: ProgressFn, timeout_s: float | None) -> Reply:
    """One request to this machine's agent, about a replica. NotProtected names the host to ask, if it is another."""
    try:
        return ask("agent", request, on_progress, timeout_s)
    except (NotProtected, PeerUnreachable) as exc:
        vm = request.vm
        if isinstance(exc, PeerRefused) or not (backup := _backup_of(vm)):
            raise
        hint = f"this machine runs {vm}; on its backup say: remusdb {request.op()} {vm} (it is {backup})"
        raise NotProtected(f"{exc}", hint=hint) from exc


def _backup_of(vm: VmName) -> str:
    """The host that this machine's host daemon protects the VM to, if it knows."""
    with contextlib.suppress(RemusError):
        for status in ask("host", HostStatus(vm=vm), timeout_s=5.0).vms:
            return status.peer or "" if status.state in PRIMARY else ""
    return ""
