# SPDX-License-Identifier: Apache-2.0
"""`remusdb status`: what is protected here, what is kept here for others, and how well it goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import click
from msgspec import Struct

from remusdb.cli import words
from remusdb.cli.asking import ask, json_option, run_dir_option, socket_of, vm_or_all_argument
from remusdb.cli.say import print_json, say
from remusdb.control.api import AgentStatus, HostStatus
from remusdb.control.status import StandbyStatus, VmStatus
from remusdb.errors import PeerUnreachable, VmError
from remusdb.names import VmName
from remusdb.says import says


class Vms(Struct, frozen=True, kw_only=True):
    """The VMs of this machine, in the order of their names, each as the daemon tells it that has more to do with it."""

    vms: Annotated[list[VmStatus | StandbyStatus], says("which of the two, `role` says: `primary` is a VmStatus")]


ACTIVE = ("seeding", "ready", "deciding")  # a replica is kept here for another host

HEAD = ("VM", "ROLE", "STATE", "PEER", "TERM", "COMMITTED", "AGE", "PAUSE", "EPOCH SIZE", "HELD", "REASON")


@click.command()
@vm_or_all_argument
@click.option("--agent", "agent_only", is_flag=True, help="Ask this machine's backup agent alone.")
@json_option
@run_dir_option
def status(vm: VmName | None, agent_only: bool, as_json: bool) -> None:
    """Show the VMs of this machine, or one VM in full.

    AGE is how old the newest state is that the backup holds: nothing later has been seen by any client.
    """
    found = _found(_daemons(agent_only), vm)
    if as_json:
        print_json(Vms(vms=found))
    elif vm is not None:
        for number, one in enumerate(found):
            say(*[""] * bool(number), *_in_full(one))
    elif found:
        say(*words.table(HEAD, [_row(one) for one in found]))
        say(*(f"hint: {one.vm}: {one.hint}" for one in found if one.hint))
    else:
        say("No VMs here.")


def _daemons(agent_only: bool) -> list[str]:
    """Whom to ask: those that have a socket; if none has, the host daemon, whose absence is then reported."""
    if agent_only:
        return ["agent"]
    return [name for name in ("host", "agent") if socket_of(name).exists()] or ["host"]


def _found(daemons: Sequence[str], vm: VmName | None) -> list[VmStatus | StandbyStatus]:
    own: list[VmStatus] = []
    kept: list[StandbyStatus] = []
    errors: list[PeerUnreachable | VmError] = []
    for daemon in daemons:
        try:
            if daemon == "host":
                told = ask("host", HostStatus(vm=vm), timeout_s=10.0)
                own = told.vms
                say(*(f"remusdb: {warning}" for warning in told.warnings), err=True)
            else:
                kept = ask("agent", AgentStatus(vm=vm), timeout_s=10.0).vms
        except (PeerUnreachable, VmError) as exc:
            errors.append(exc)
    found = _merged(own, kept)
    if errors and not found:
        raise errors[0]
    if vm is not None and not found:
        raise VmError(f"there is no VM {vm} here")
    for error in errors:
        if isinstance(error, PeerUnreachable):
            say(f"remusdb: {error.id} {error}", err=True)
    return found


def _merged(own: list[VmStatus], kept: list[StandbyStatus]) -> list[VmStatus | StandbyStatus]:
    """Both daemons' VMs, each once: the host daemon's word where it has one, else the agent's.

    A standby is a libvirt domain, too: the host daemon sees it as one that is not protected.
    """
    named = {one.vm for one in own if one.state != "unprotected"}
    theirs = [one for one in kept if one.state in ACTIVE or one.vm not in named]
    here = {one.vm for one in theirs if one.state in ACTIVE or one.state == "promoted"}
    mine = {one.vm: one for one in own if one.vm not in here}
    left = [one for one in theirs if one.vm not in mine]
    return sorted([*mine.values(), *left], key=lambda one: one.vm)


def _row(one: VmStatus | StandbyStatus) -> list[str]:
    head, reason = [one.vm, one.role, one.state], one.reason
    if one.why is not None and one.hint:  # something to do: by its code it is found in docs/json.md
        reason = f"{one.why.code}: {reason}"
    if one.state == "unprotected":
        return [*head, *[words.NOTHING] * (len(HEAD) - 4), reason]
    known = [one.peer or words.NOTHING, str(one.term), str(one.committed)]
    if isinstance(one, StandbyStatus):  # its age: since when the primary has been silent
        return [*head, *known, words.age(one.primary_silence_ms), *[words.NOTHING] * 3, reason]
    pause = words.NOTHING
    if one.pause_ms_p50 is not None and one.pause_ms_p99 is not None:
        pause = f"{one.pause_ms_p50:.1f}/{one.pause_ms_p99:.1f} ms"
    sizes = [words.size(one.bytes_per_epoch), words.size(one.held_bytes)]
    return [*head, *known, words.age(one.committed_age_ms), pause, *sizes, reason]


def _in_full(one: VmStatus | StandbyStatus) -> list[str]:
    lines = []
    for key in one.__struct_fields__:
        value = getattr(one, key)
        name, shown = key, "-" if value is None or value == "" else str(value)
        if key.endswith("_age_ms") or key.endswith("_silence_ms"):
            name, shown = key.removesuffix("_ms"), words.age(value)
        elif key.endswith("_at_ns") and value:
            name, shown = key.removesuffix("_ns"), words.moment(value)
        elif key == "why" and value:
            shown = value.code
        elif key == "troubles":
            shown = ", ".join(value) or "-"
        elif key == "page_kib" and value:
            shown = f"{value}" if value == 4 else f"{value}: each write sends up to {value // 4} pages of 4 KiB"
        elif key.endswith("_bytes") or key.startswith("bytes_"):
            shown = words.size(value)
        lines.append(f"{name:<18} {shown}")
    return lines
