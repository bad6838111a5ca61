# SPDX-License-Identifier: Apache-2.0
"""`remusdb switchover`: move a protected VM to its backup, planned."""

from __future__ import annotations

import click

from remusdb.cli.asking import ask, json_option, run_dir_option, vm_argument
from remusdb.cli.progress import Steps
from remusdb.cli.say import print_json, say
from remusdb.control.api import Switchover
from remusdb.names import VmName


@click.command()
@vm_argument
@click.option("--to", "peer", metavar="HOST", help="Protect it to HOST first, if it is not yet: a live migration.")
@json_option
@run_dir_option
def switchover(vm: VmName, peer: str | None, as_json: bool) -> None:
    """Move VM to the host it is protected to: nothing is lost, connections stay, it is paused for a moment.

    Run it where the VM runs. Afterwards VM is not protected: `remusdb reprotect` there, or auto_reprotect = true.
    """
    with Steps() as steps:
        done = ask("host", Switchover(vm=vm, to=peer), steps.show, timeout_s=None)
    if as_json:
        print_json(done)
        return
    say(f"{vm} runs on {done.to} now, in term {done.term}; this host was told so after {done.took_ms:.0f} ms.")
