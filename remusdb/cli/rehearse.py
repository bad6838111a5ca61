# SPDX-License-Identifier: Apache-2.0
"""`remusdb rehearse`: would the backup really be able to run the VM?"""

from __future__ import annotations

import click

from remusdb.cli import words
from remusdb.cli.asking import ask_backup, json_option, run_dir_option, vm_argument
from remusdb.cli.progress import Steps
from remusdb.cli.say import print_json, say
from remusdb.control.api import Rehearse, Rehearsed
from remusdb.names import VmName

SILENCE_S = 120.0  # between two words of the agent: starting a QEMU is the longest
REFUSED = 1


@click.command()
@vm_argument
@click.option("--tcp", "tcp_port", metavar="PORT", type=click.IntRange(1, 65535), help="A port that must answer.")
@click.option("--seconds", type=click.FloatRange(1, 600), default=5, show_default=True, help="How long the copy runs.")
@json_option
@run_dir_option
@click.pass_context
def rehearse(ctx: click.Context, vm: VmName, tcp_port: int | None, seconds: float, as_json: bool) -> None:
    """Resume a copy of VM's last committed state on this machine, the backup, cut off from every network;
    see whether it runs, and discard it.

    Protection goes on, and a takeover ends the rehearsal at once. Exit code 1 if the copy gave no sign of life.
    """
    with Steps() as steps:
        result = ask_backup(Rehearse(vm=vm, tcp_port=tcp_port, seconds=seconds), steps.show, SILENCE_S)
    if as_json:
        print_json(result)
    else:
        _tell(result)
    if not result.ok:
        ctx.exit(REFUSED)


def _tell(result: Rehearsed) -> None:
    said = "runs" if result.ok else "shows no sign of life"
    say(f"A copy of {result.vm} at epoch {result.epoch} (term {result.term}) {said}.")
    rows = [("ok" if look.ok else "no", look.name, look.detail) for look in result.checks]
    say(*words.table(("", "CHECK", "DETAIL"), rows))
    say(
        f"Resumed in {result.resume_ms:.0f} ms, discarded after {words.age(result.took_ms)}; "
        f"{result.held_back_epochs} epochs waited meanwhile, and were acknowledged."
    )
