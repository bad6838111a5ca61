# SPDX-License-Identifier: Apache-2.0
"""`remusdb diagnose`: one file for a bug report."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import click
from msgspec import Struct

from remusdb.cli import words
from remusdb.cli.asking import ask, json_option, run_dir_option, state_dir_option, vm_argument
from remusdb.cli.say import print_json, say
from remusdb.control.api import AgentStatus, CheckVm, HostStatus
from remusdb.diagnose.bundle import Bundle
from remusdb.diagnose.collect import Places, collect, finish
from remusdb.names import VmName, file_stem
from remusdb.says import says

ASK_S = 60.0  # a check looks at the VM and, without `--to`, at this host alone


class Bundled(Struct, frozen=True, kw_only=True):
    """A bundle for a bug report."""

    path: Annotated[str, says("the file")]
    size_bytes: Annotated[int, says("of it")]
    entries: Annotated[list[str], says("what is in it")]
    left_out: Annotated[dict[str, str], says("what is not, and why")]


@click.command()
@vm_argument
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder to write it to.  [default: this one]",
)
@state_dir_option
@json_option
@run_dir_option
def diagnose(vm: VmName, folder: Path, state_dir: Path, as_json: bool) -> None:
    """Write a bundle for a bug report about VM: what this host knows of it. Say it on both hosts.

    In it: status and `check` as the daemons tell them, state and history, configuration, versions, the VM's
    definition, the journal of remusdb and libvirt, logs of libvirt and of the VM's QEMU. Not in it: certificates and
    keys, passwords and tokens as far as they can be told by their name or shape, comments of the configuration, the
    guest's console, memory and disks. Nothing is changed, and no daemon has to run. Only you can read the file: look
    into it before you send it.
    """
    at = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    name = f"remusdb-{file_stem(vm).replace(' ', '_')[:100]}-{os.uname().nodename}-{at}"
    questions = {
        "host": lambda: ask("host", HostStatus(), timeout_s=ASK_S),
        "agent": lambda: ask("agent", AgentStatus(), timeout_s=ASK_S),
        "check": lambda: ask("host", CheckVm(vm=vm), timeout_s=ASK_S),
    }
    with Bundle(folder, name) as bundle:
        collect(vm, bundle, Places(state_dir=state_dir), questions)
        finish(bundle, vm)
    made = Bundled(
        path=str(bundle.path), size_bytes=bundle.size_bytes, entries=bundle.entries, left_out=bundle.left_out
    )
    if as_json:
        print_json(made)
        return
    say(f"{made.path} ({words.size(made.size_bytes)}, {len(made.entries)} entries)")
    say(*(f"not in it: {what}: {why}" for what, why in made.left_out.items()))
    say("Look into it before you send it: what you wrote yourself, nobody else can tell to be a secret.")
