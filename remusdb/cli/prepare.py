# SPDX-License-Identifier: Apache-2.0
"""`remusdb prepare`: what makes protection cheaper, written into the VM's definition."""

from __future__ import annotations

import click

from remusdb.cli.asking import ask, json_option, run_dir_option, vm_argument
from remusdb.cli.say import print_json, say
from remusdb.control.api import Prepare
from remusdb.names import VmName


@click.command()
@vm_argument
@json_option
@run_dir_option
def prepare(vm: VmName, as_json: bool) -> None:
    """Write into VM's persistent definition what makes protection cheaper.

    The running VM is not touched: changes take effect when it is next started (a reboot from inside is not enough).
    """
    prepared = ask("host", Prepare(vm=vm))
    if as_json:
        print_json(prepared)
    elif prepared.changes:
        for change in prepared.changes:
            say(f"  {change}")
        say(f"In effect from the next start of {vm} (shut it down and start it; a reboot inside is not enough).")
    else:
        say(f"{vm} is prepared already: nothing was changed.")
