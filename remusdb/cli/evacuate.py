# SPDX-License-Identifier: Apache-2.0
"""`remusdb evacuate`: move every protected VM of this host to its backup."""

from __future__ import annotations

import click

from remusdb.cli.asking import ask, json_option, run_dir_option
from remusdb.cli.progress import Steps
from remusdb.cli.say import print_json, say


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
        done = ask("host", "evacuate", steps.show, timeout_s=None, if_host_stops=if_host_stops)
    if as_json:
        print_json(done)
    else:
        for one in done["moved"]:
            say(f"{one['vm']} runs on {one['to']} now, in term {one['term']}.")
        for one in done["stayed"]:
            say(f"{one['vm']} stays here: {one['reason']}", err=True)
        if not done["moved"] and not done["stayed"]:
            say("no VM was moved: " + (done.get("note") or "none is protected here"))
    if any(not one["exempt"] for one in done["stayed"]):
        ctx.exit(1)
