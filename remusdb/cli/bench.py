# SPDX-License-Identifier: Apache-2.0
"""`remusdb bench`: what protection of a VM of one's own costs, as it is now."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click

from remusdb.cli import words
from remusdb.cli.asking import ask, json_option, run_dir_option, socket_of, vm_argument
from remusdb.cli.progress import Steps
from remusdb.cli.say import print_json, say
from remusdb.control import Progress
from remusdb.control.api import HostStatus
from remusdb.control.status import VmStatus
from remusdb.errors import NotProtected
from remusdb.measured import Measured, measured
from remusdb.names import VmName
from remusdb.processes import CpuMeter

LOOK_S = 1.0


@click.command()
@vm_argument
@click.option(
    "--seconds", type=click.IntRange(2, 3600), default=30, show_default=True, help="For how long it is looked at."
)
@json_option
@run_dir_option
def bench(vm: VmName, seconds: int, as_json: bool) -> None:
    """Measure what the protection of VM costs while it does whatever it does: pauses, waits, pages, bytes, CPU.

    It looks, and changes nothing: neither the VM nor its protection notices. Say it on the host where VM is protected,
    under its usual load. What the same load would do unprotected is not known to it: measure that before `protect`.
    """
    with Steps() as steps:
        meter = CpuMeter(vm, socket_of("host").parent)
        began = time.monotonic()
        looks = [_look(vm)]
        for look in _later(vm, seconds):
            looks.append(look)
            steps.show(Progress(step=f"look at {vm}", done=len(looks) - 1, total=seconds, unit="s"))
    found = measured(looks, time.monotonic() - began, meter.read())
    if as_json:
        print_json(found)
    else:
        say(*_lines(found))


def _look(vm: VmName) -> VmStatus:
    """NotProtected, where it is not; so nothing is measured of what is not there."""
    for status in ask("host", HostStatus(vm=vm), timeout_s=10.0).vms:
        if status.state == "protected":
            return status
        raise NotProtected(
            f"VM {vm} is not protected now ({status.state}), so there is nothing to measure",
            hint="say this where it is protected, once `remusdb status` says PROTECTED",
        )
    raise NotProtected(f"there is no VM {vm} here", hint="`remusdb status` lists the VMs of this host")


def _later(vm: VmName, seconds: int) -> Iterator[VmStatus]:
    for _ in range(seconds):
        _wait(LOOK_S)
        yield from ask("host", HostStatus(vm=vm), timeout_s=10.0).vms


def _wait(seconds: float) -> None:
    time.sleep(seconds)


def _lines(found: Measured) -> list[str]:
    """As people read it."""
    other = ", ".join(f"{state} {count}" for state, count in found.states.items() if state != "protected")
    lines = [f"VM {found.vm}, looked at for {found.seconds:g} s, epochs {found.epoch_mode or words.NOTHING}"]
    if other:
        lines.append(f"It was not protected all the time; so often it was seen in another state: {other}.")
    share = words.NOTHING if found.pause_share is None else f"{100 * found.pause_share:.1f} % of the time"
    wire = words.NOTHING if found.wire_over_dirty is None else f"{100 * found.wire_over_dirty:.1f} % of these pages"
    rows = [
        ("epochs", f"{words.number(found.epochs_per_s)} a second", ""),
        ("the VM is paused for", _two(found.pause_ms_p50, found.pause_ms_p99), share),
        ("output waits, from a cut", _two(found.commit_ms_p50, found.commit_ms_p99), ""),
        ("written in an epoch", f"{words.number(found.dirty_pages)} pages", ""),
        ("sent for an epoch", words.size(found.bytes_per_epoch), wire),
        ("sent in a second", words.size(found.bytes_per_s), ""),
        ("waiting for the backup, at most", words.size(found.held_bytes), f"{found.dropped_frames} frames dropped"),
    ]
    rows += [(f"CPU of {name}", f"{ms / 10:.1f} % of a core", "") for name, ms in found.cpu_ms_per_s.items()]
    stages = ", ".join(f"{name} {ms:g}" for name, ms in found.stages_ms.items())
    return [*lines, *words.table(("WHAT", "MEDIAN / 1 % EXCEED", ""), rows), f"An epoch's parts, ms: {stages}"]


def _two(median: float | None, most: float | None) -> str:
    return f"{words.number(median)} / {words.number(most)} ms"
