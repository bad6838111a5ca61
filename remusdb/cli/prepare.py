# SPDX-License-Identifier: Apache-2.0
"""`remusdb prepare`: what makes protection cheaper, written into the VM's definition."""

from __future__ import annotations

import click

from remusdb.cli.asking import ask, json_option, run_dir_option
from remusdb.cli.say import print_json, say


@click.command()
@click.argument("vm")
@json_option
@run_dir_option
def prepare(vm: str, as_json: bool) -> None:
    """Write into VM's persistent definition what makes protection cheaper.

    The running VM is not touched: changes take effect when it is next started (a reboot from inside is not enough).
    """
    changes: list[str] = ask("host", "prepare", vm=vm)["changes"]
    if as_json:
        print_json({"changes": changes})
    elif changes:
        for change in changes:
            say(f"  {change}")
        say(f"In effect from the next start of {vm} (shut it down and start it; a reboot inside is not enough).")
    else:
        say(f"{vm} is prepared already: nothing was changed.")
