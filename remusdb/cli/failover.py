# SPDX-License-Identifier: Apache-2.0
"""`remusdb failover`: have this machine's agent take a VM over, now."""

from __future__ import annotations

import sys

import click

from remusdb.cli.asking import ask, json_option, run_dir_option, vm_argument
from remusdb.cli.say import print_json, say
from remusdb.control.api import Failover
from remusdb.errors import UsageError
from remusdb.names import VmName

FAILOVER_TIMEOUT_S = 120.0


@click.command()
@vm_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--primary-is-dead",
    is_flag=True,
    help="Confirm it yourself if the arbiter does not answer. Only if the primary's host is off.",
)
@json_option
@run_dir_option
def failover(vm: VmName, yes: bool, primary_is_dead: bool, as_json: bool) -> None:
    """Resume VM on this machine, the backup, where its last committed epoch left it.

    The new term fences the primary: if it still runs, the VM there can send nothing more, and is shut off.
    """
    if not yes:
        _confirm(vm)
    done = ask("agent", Failover(vm=vm, primary_is_dead=primary_is_dead), timeout_s=FAILOVER_TIMEOUT_S)
    if as_json:
        print_json(done)
        return
    say(f"{vm} runs here: term {done.term}, epoch {done.epoch}, resumed in {done.resume_ms:.0f} ms.")


def _confirm(vm: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError("failover must be confirmed, and there is no terminal", hint="use --yes")
    click.confirm(f"Resume {vm} here? Its primary, if it still runs, is shut off for good.", abort=True, err=True)
