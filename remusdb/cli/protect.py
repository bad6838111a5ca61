# SPDX-License-Identifier: Apache-2.0
"""`remusdb protect` and `remusdb reprotect`: begin to protect a running VM."""

from __future__ import annotations

import click

from remusdb.cli.asking import ask, json_option, run_dir_option, vm_argument
from remusdb.cli.progress import Steps
from remusdb.cli.say import print_json, say
from remusdb.control.api import Protect, Reprotect
from remusdb.control.status import VmStatus
from remusdb.names import VmName


@click.command()
@vm_argument
@click.option("--to", "peer", metavar="HOST", required=True, help="A peer named in host.toml.")
@json_option
@run_dir_option
def protect(vm: VmName, peer: str, as_json: bool) -> None:
    """Protect the running VM to HOST; return once it is.

    The VM is not restarted. Interrupting this command does not interrupt the daemon: see `remusdb status`.
    """
    _begin(Protect(vm=vm, to=peer), as_json)


@click.command()
@vm_argument
@click.option("--to", "peer", metavar="HOST", required=True, help="A peer named in host.toml.")
@json_option
@run_dir_option
def reprotect(vm: VmName, peer: str, as_json: bool) -> None:
    """Protect VM again, after this host took it over or lost its backup: back to where it came from, or elsewhere.

    An old copy of the VM on HOST is quarantined first; of disks that are there only what differs is copied.
    """
    _begin(Reprotect(vm=vm, to=peer), as_json)


def _when(status: VmStatus) -> str:
    return "on demand" if status.epoch_mode == "on-demand" else f"every {status.epoch_ms} ms"


def _begin(asked: Protect | Reprotect, as_json: bool) -> None:
    try:
        with Steps() as steps:
            status = ask("host", asked, steps.show, timeout_s=None)
    except KeyboardInterrupt:
        say(f"The host daemon goes on. To end it: remusdb unprotect {asked.vm}", err=True)
        raise
    if as_json:
        print_json(status)
        return
    say(
        f"{asked.vm} is protected to {asked.to}: epochs {_when(status)}, "
        f"term {status.term}, gate {status.gate}, monitor {status.monitor}, {status.accel}."
    )
    if status.unproven:
        say(f"remusdb: {status.unproven}", err=True)
