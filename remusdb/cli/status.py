# SPDX-License-Identifier: Apache-2.0
"""`remusdb status`: what is protected here, what is kept here for others, and how well it goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from remusdb.cli import words
from remusdb.cli.asking import ask, json_option, run_dir_option, socket_of
from remusdb.cli.say import print_json, say
from remusdb.errors import PeerUnreachable, VmError

Vm = dict[str, Any]

ACTIVE = ("seeding", "ready", "deciding")  # a replica is kept here for another host

HEAD = ("VM", "ROLE", "STATE", "PEER", "TERM", "COMMITTED", "AGE", "PAUSE", "EPOCH SIZE", "HELD", "REASON")


@click.command()
@click.argument("vm", required=False)
@click.option("--agent", "agent_only", is_flag=True, help="Ask this machine's backup agent alone.")
@json_option
@run_dir_option
def status(vm: str | None, agent_only: bool, as_json: bool) -> None:
    """Show the VMs of this machine, or one VM in full.

    AGE is how old the newest state is that the backup holds: nothing later has been seen by anyone outside.
    """
    found = _found(_daemons(agent_only), vm)
    if as_json:
        print_json({"vms": found})
    elif vm is not None:
        for number, one in enumerate(found):
            say(*[""] * bool(number), *_in_full(one))
    elif found:
        say(*words.table(HEAD, [_row(one) for one in found]))
    else:
        say("No VMs here.")


def _daemons(agent_only: bool) -> list[str]:
    """Whom to ask: those that have a socket; if none has, the host daemon, whose absence is then reported."""
    if agent_only:
        return ["agent"]
    return [name for name in ("host", "agent") if socket_of(name).exists()] or ["host"]


def _found(daemons: Sequence[str], vm: str | None) -> list[Vm]:
    answers: dict[str, list[Vm]] = {}
    errors: list[PeerUnreachable | VmError] = []
    for daemon in daemons:
        try:
            told = ask(daemon, "status", timeout_s=10.0, vm=vm)
        except (PeerUnreachable, VmError) as exc:
            errors.append(exc)
            continue
        answers[daemon] = told["vms"]
        for warning in told.get("warnings", ()):
            say(f"remusdb: {warning}", err=True)
    found = _merged(answers.get("host", []), answers.get("agent", []))
    if errors and not found:
        raise errors[0]
    if vm is not None and not found:
        raise VmError(f"there is no VM {vm} here")
    for error in errors:
        if isinstance(error, PeerUnreachable):
            say(f"remusdb: {error.id} {error}", err=True)
    return found


def _merged(own: list[Vm], kept: list[Vm]) -> list[Vm]:
    """Both daemons' VMs, each once: the host daemon's word where it has one, else the agent's.

    A standby is a libvirt domain, too: the host daemon sees it as one that is not protected.
    """
    busy = [one for one in own if one["state"] != "unprotected"]
    named = {one["vm"] for one in busy}
    theirs = [one for one in kept if one["state"] in ACTIVE or one["vm"] not in named]
    here = {one["vm"] for one in theirs if one["state"] in ACTIVE or one["state"] == "promoted"}
    mine = [one for one in own if one["vm"] not in here]
    left = [one for one in theirs if one["vm"] not in {other["vm"] for other in mine}]
    return sorted(mine + left, key=lambda one: str(one["vm"]))


def _row(one: Vm) -> list[str]:
    if one["state"] == "unprotected":
        return [one["vm"], one["role"], one["state"], *[words.NOTHING] * (len(HEAD) - 4), one.get("reason") or ""]
    pause = words.NOTHING
    if one.get("pause_ms_p50") is not None:
        pause = f"{one['pause_ms_p50']:.1f}/{one['pause_ms_p99']:.1f} ms"
    return [
        one["vm"],
        one["role"],
        one["state"],
        one.get("peer") or words.NOTHING,
        words.number(one.get("term")),
        words.number(one.get("committed")),
        words.age(_age_ms(one)),
        pause,
        words.size(one.get("bytes_per_epoch")),
        words.size(one.get("held_bytes")),
        one.get("reason") or "",
    ]


def _age_ms(one: Vm) -> float | None:
    """On the primary the age of the last commit; on the backup since when the primary has been silent."""
    found: float | None = one.get("committed_age_ms", one.get("primary_silence_ms"))
    return found


def _in_full(one: Vm) -> list[str]:
    lines = []
    for key, value in one.items():
        name, shown = key, "-" if value is None or value == "" else str(value)
        if key.endswith("_age_ms") or key.endswith("_silence_ms"):
            name, shown = key.removesuffix("_ms"), words.age(value)
        elif key.endswith("_at_ns") and value:
            name, shown = key.removesuffix("_ns"), words.moment(value)
        elif key == "troubles":
            shown = ", ".join(value) or "-"
        elif key == "page_kib" and value:
            shown = f"{value}" if value == 4 else f"{value}: each write sends up to {value // 4} pages of 4 KiB"
        elif key.endswith("_bytes") or key.startswith("bytes_"):
            shown = words.size(value)
        lines.append(f"{name:<18} {shown}")
    return lines
