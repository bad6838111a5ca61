# SPDX-License-Identifier: Apache-2.0
"""`remusdb export`: a backup of a protected VM's disks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from remusdb.cli import words
from remusdb.cli.asking import ask_backup, json_option, run_dir_option, vm_argument
from remusdb.cli.progress import Steps
from remusdb.cli.say import print_json, say
from remusdb.control.api import Export
from remusdb.errors import UsageError
from remusdb.names import VmName


@click.command()
@vm_argument
@click.option("--to", metavar="FILE", required=True, type=click.Path(path_type=Path), help="Not there yet.")
@click.option("--format", "kind", type=click.Choice(["raw", "qcow2"]), default="raw", show_default=True)
@json_option
@run_dir_option
def export(vm: VmName, to: Path, kind: Literal["raw", "qcow2"], as_json: bool) -> None:
    """Write the disks of VM's last committed state to files on this machine, its backup, while protection goes on.

    They are as after a power cut at that moment, all of the same one. A VM's only disk becomes FILE; of several, vda
    of /srv/db1.img becomes /srv/db1-vda.img. A takeover ends the export at once. Interrupting this command does not.
    """
    file = to.absolute()
    try:
        folder = file.parent.stat()
    except OSError as exc:
        raise UsageError(f"--to: {file.parent}: {exc.strerror}", hint="say a file in a folder that is there") from exc
    asked = Export(vm=vm, to=str(file), folder=[folder.st_dev, folder.st_ino], format=kind)
    with Steps() as steps:
        result = ask_backup(asked, steps.show, None)
    if as_json:
        print_json(result)
        return
    say(f"{vm} at epoch {result.epoch} (term {result.term}), in {words.age(result.took_ms)}:")
    say(*(f"  {one.disk}: {one.path} ({words.size(one.size_bytes)})" for one in result.disks))
