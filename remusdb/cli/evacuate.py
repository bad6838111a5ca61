# SPDX-License-Identifier: Apache-2.0
"""`remusdb evacuate`: move every protected VM of this host to its backup."""

from __future__ import annotations

import click

from remusdb.cli.asking import ask, json_option, run_dir_option
from remusdb.cli.progress import Steps
from remusdb.cli.say import print_json, say
from remusdb.control.api import Evacuate


@click.command()
@click.option(
    "--if-host-stops",
    is_flag=True,
    help="Only if this host is shutting down, and none with on_host_shutdown = nothing: for the systemd unit.",
)
@json_option
@run_dir_option
@click.pass_context
def evacuate(ctx: click.Context, if_host_stops: bool, as_json: bool) -> None:
    """Move every protected VM of this host to its backup, as `remusdb switchover` does one.

    Before maintenance of this host. Exit code 1 if a VM stayed that should have moved.
    """
    with Steps() as steps:
        done = ask("host", Evacuate(if_host_stops=if_host_stops), steps.show, timeout_s=None)
    if as_json:
        print_json(done)
    else:
        for moved in done.moved:
            say(f"{moved.vm} runs on {moved.to} now, in term {moved.term}.")
        for stayed in done.stayed:
            say(f"{stayed.vm} stays here: {stayed.reason}", err=True)
        if not done.moved and not done.stayed:
            say("no VM was moved: " + (done.note or "none is protected here"))
    if any(not stayed.exempt for stayed in done.stayed):
        ctx.exit(1)
