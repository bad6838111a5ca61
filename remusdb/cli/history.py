# SPDX-License-Identifier: Apache-2.0
"""`remusdb history`: what happened to a VM, as far as this machine was there."""

from __future__ import annotations

import heapq
from pathlib import Path

import click

from remusdb.cli import words
from remusdb.cli.asking import json_option, state_dir_option
from remusdb.cli.say import print_json, say
from remusdb.errors import NotProtected
from remusdb.history import Event, VmEvents, read

DAEMONS = ("host", "agent")

HEAD = ("TIME", "HOST", "BY", "EVENT", "WAS -> NOW", "TERM", "EPOCH", "LAST HEARD", "REASON")


@click.command()
@click.argument("vm")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the newest N events.")
@state_dir_option
@json_option
def history(vm: str, last: int | None, state_dir: Path, as_json: bool) -> None:
    """Show what happened to VM, when and why. Needs no daemon.

    Each host has what it did itself: ask both. LAST HEARD is how long before the event the other host had last been
    heard.
    """
    folders = [state_dir, *(state_dir / name for name in DAEMONS)]
    # Each file is in the order in which things happened, even where the clock was set back.
    events = list(heapq.merge(*(read(folder, vm) for folder in folders), key=lambda event: event.at_ns))
    if not events:
        raise NotProtected(
            f"no event of VM {vm} is recorded in {state_dir}",
            hint="ask on the other host too; `remusdb status` lists the VMs of this one",
        )
    shown = events[-last:] if last else events
    if as_json:
        print_json(VmEvents(vm=vm, events=shown))
    else:
        say(*words.table(HEAD, [_row(event) for event in shown]))


def _row(event: Event) -> list[str]:
    return [
        words.moment(event.at_ns),
        event.host,
        event.by,
        event.event,
        f"{event.was} -> {event.now}",
        str(event.term),
        words.NOTHING if event.epoch is None else str(event.epoch),
        words.age(event.heard_ms_ago),
        event.reason,
    ]
