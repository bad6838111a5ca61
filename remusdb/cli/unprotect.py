# SPDX-License-Identifier: Apache-2.0
"""`remusdb unprotect`: end protection in good order."""

from __future__ import annotations

import click

from remusdb.cli.asking import ask, run_dir_option, vm_argument
from remusdb.cli.progress import Steps
from remusdb.cli.say import say
from remusdb.control.api import Unprotect
from remusdb.names import VmName

UNPROTECT_TIMEOUT_S = 150.0  # longer than the daemon's own limit, so that its words are heard


@click.command()
@vm_argument
@click.option(
    "--peer-is-dead",
    is_flag=True,
    help="End it without the agent's confirmation. Only if its host is off: otherwise two VMs may speak.",
)
@run_dir_option
def unprotect(vm: VmName, peer_is_dead: bool) -> None:
    """End the protection of VM: the agent gives up its standby, then output flows freely.

    VM, network and block chain are left as they were found.
    """
    with Steps() as steps:
        done = ask("host", Unprotect(vm=vm, peer_is_dead=peer_is_dead), steps.show, UNPROTECT_TIMEOUT_S)
    if done.note:
        say(f"remusdb: {done.note}", err=True)
    say(f"{vm} is no longer protected.")
