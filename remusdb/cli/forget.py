# SPDX-License-Identifier: Apache-2.0
"""`remusdb forget`: have this machine's agent forget whose a VM was."""

from __future__ import annotations

import sys

import click

from remusdb.cli.asking import ask, json_option, run_dir_option, vm_argument
from remusdb.cli.say import print_json, say
from remusdb.control.api import Forget
from remusdb.errors import UsageError
from remusdb.names import VmName

FORGET_TIMEOUT_S = 60.0


@click.command()
@vm_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--lose-the-replica",
    is_flag=True,
    help="Also if this host holds a complete replica whose primary is silent: it may be the only copy of VM.",
)
@json_option
@run_dir_option
def forget(vm: VmName, yes: bool, lose_the_replica: bool, as_json: bool) -> None:
    """Allow another host, or another VM of that name, to be protected to this machine.

    The agent keeps a VM for one owner and one UUID. Run this for a VM that was made again, or moved by
    hand. No disk is deleted. Be sure that the VM runs only where it is to be protected.
    """
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("forget must be confirmed, and there is no terminal", hint="use --yes")
        click.confirm(f"Forget who owns {vm}? An old primary of it must not come back.", abort=True, err=True)
    done = ask("agent", Forget(vm=vm, lose_replica=lose_the_replica), timeout_s=FORGET_TIMEOUT_S)
    if as_json:
        print_json(done)
        return
    say(f"{vm} is forgotten here: any listed host may protect a VM of that name to this machine now.")
    for path in [*done.quarantined_disks, *done.moved]:
        say(f"not deleted: {path}")
