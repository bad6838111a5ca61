# SPDX-License-Identifier: Apache-2.0
"""`remusdb check`: can this VM be protected, and what would make it better."""

from __future__ import annotations

import click

from remusdb.cli.asking import ask, json_option, run_dir_option, vm_argument
from remusdb.cli.say import print_json, say
from remusdb.control.api import CheckVm
from remusdb.errors import CannotProtect
from remusdb.names import VmName
from remusdb.preflight.checks import Check


@click.command()
@vm_argument
@click.option("--to", metavar="HOST", help="Look at this peer of host.toml too.")
@json_option
@run_dir_option
def check(vm: VmName, to: str | None, as_json: bool) -> None:
    """Show whether VM can be protected, and what to do if it cannot.

    Nothing is changed. Exit code 8 if something required is missing.
    """
    checked = ask("host", CheckVm(vm=vm, to=to), timeout_s=60.0)
    if as_json:
        print_json(checked)
    else:
        for found in checked.checks:
            say(_line(found))
            if found.hint and not found.ok:
                say(f"        {found.hint}")
    failed = [found for found in checked.checks if not found.ok and found.level == "required"]
    advice = [found for found in checked.checks if not found.ok and found.level != "required"]
    if failed:
        names = ", ".join(found.name for found in failed)
        raise CannotProtect(f"VM {vm} cannot be protected: {names}", hint="each line that says FAIL says what to do")
    if not as_json:
        say(f"Looks good; notes: {len(advice)}." if advice else "Looks good.")


def _line(found: Check) -> str:
    mark = "ok  " if found.ok else ("FAIL" if found.level == "required" else "note")
    return f"  {mark}  {found.name}: {found.detail}"
