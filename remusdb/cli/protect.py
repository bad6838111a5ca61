# SPDX-License-Identifier: Apache-2.0
"""`remusdb protect` and `remusdb reprotect`: begin to protect a running VM."""

from __future__ import annotations

import click

from remusdb.cli.asking import ask, json_option, run_dir_option
from remusdb.cli.progress import Steps
from remusdb.cli.say import print_json, say


@click.command()
@click.argument("vm")
@click.option("--to", "peer", metavar="HOST", required=True, help="A peer named in host.toml.")
@json_option
@run_dir_option
def protect(vm: str, peer: str, as_json: bool) -> None:
    """Protect the running VM to HOST; return once it is.

    The VM is not restarted. Interrupting this command does not interrupt the daemon: see `remusdb status`.
    """
    _begin("protect", vm, peer, as_json)


@click.command()
@click.argument("vm")
@click.option("--to", "peer", metavar="HOST", required=True, help="A peer named in host.toml.")
@json_option
@run_dir_option
def reprotect(vm: str, peer: str, as_json: bool) -> None:
    """Protect VM again, after this host took it over or lost its backup: back to where it came from, or elsewhere.

    An old copy of the VM on HOST is put away first; of disks that are there only what differs is copied.
    """
    _begin("reprotect", vm, peer, as_json)


def _begin(verb: str, vm: str, peer: str, as_json: bool) -> None:
    try:
        with Steps() as steps:
            status = ask("host", verb, steps.show, timeout_s=None, vm=vm, to=peer)
    except KeyboardInterrupt:
        say(f"The host daemon goes on. To end it: remusdb unprotect {vm}", err=True)
        raise
    if as_json:
        print_json(status)
        return
    say(
        f"{vm} is protected to {peer}: an epoch every {status['epoch_ms']} ms, term {status['term']}, "
        f"gate {status['gate']}, monitor {status['monitor']}, {status['accel']}."
    )
    if why := status.get("unproven"):
        say(f"remusdb: {why}", err=True)
