# SPDX-License-Identifier: Apache-2.0
"""`remusdb status`: are the VMs of this machine safe, what is kept here for others, and how well it goes."""

from __future__ import annotations

import time

import click

from remusdb.cli import status_view
from remusdb.cli.asking import json_option, run_dir_option, socket_of, vm_or_all_argument
from remusdb.cli.say import print_json, say
from remusdb.control.both import ask_both
from remusdb.control.verdict import Vms
from remusdb.errors import NotProtected, PeerUnreachable, RemusError, UsageError, VmError
from remusdb.names import VmName
from remusdb.reasons import Code, Reason

WATCH_S = 1.0


@click.command()
@vm_or_all_argument
@click.option("--agent", "agent_only", is_flag=True, help="Ask this machine's backup agent alone. Exit code 0.")
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@json_option
@run_dir_option
@click.pass_context
def status(ctx: click.Context, vm: VmName | None, agent_only: bool, watch: bool, as_json: bool) -> None:
    """Say whether the VMs of this machine are PROTECTED, and show them; or one VM in full.

    A VM counts if protection was asked for and no operator has ended it, or if it was taken over here. A VM that was
    never protected, or unprotected by hand, counts only if it is named, or if there is nothing else. VMs of which this
    host is the backup, or that another host owns, do not count: ask there; but one that this host should take over,
    and may not, does. If none counts: NOTHING TO PROTECT.

    EXPOSED is how old the newest state is that the backup holds: nothing later has been seen by any client. REPLIES
    WAIT, from a cut until its output is released, and PAUSE are the median / what 1 % exceed; PAUSED is its share of
    the time, CLOCK how late the guest's clock is.

    Exit code 0 if all that count are protected, or none counts; 3 if one is not; 5 if no daemon answers.
    """
    if watch and as_json:
        raise UsageError("--watch is for people, --json for programs", hint="say one of them")
    if watch:
        ctx.exit(_watch(agent_only, vm))
    try:
        found = _look(agent_only, vm)
    except PeerUnreachable:
        if not as_json and not agent_only:
            say(*status_view.unknown(Reason.of(Code.NO_DAEMON)))
        raise
    if as_json:
        print_json(found)
    else:
        say(*_lines(found, vm))
    ctx.exit(_exit_code(found, agent_only))


def _exit_code(found: Vms, agent_only: bool) -> int:
    return NotProtected.exit_code if found.verdict == "not-protected" and not agent_only else 0


def _lines(found: Vms, vm: VmName | None) -> list[str]:
    if vm is None:
        return [*status_view.whole(found), *([] if found.vms else ["No VMs here."])]
    lines = list(status_view.answer(found))
    for one in found.vms:
        lines += ["", *status_view.in_full(one)]
    return lines


def _watch(agent_only: bool, vm: VmName | None) -> int:
    """Shows it again until it is interrupted; the exit code is that of what was shown last."""
    code = 0
    try:
        while True:
            try:
                found = _look(agent_only, vm)
                lines, code = _lines(found, vm), _exit_code(found, agent_only)
            except RemusError as exc:
                lines, code = [*status_view.unknown(Reason.by(exc))], exc.exit_code
            click.clear()
            say(*lines, "", f"at {time.strftime('%H:%M:%S')}; Ctrl-C ends this")
            _wait(WATCH_S)
    except KeyboardInterrupt:
        return code


def _wait(seconds: float) -> None:
    time.sleep(seconds)


def _daemons(agent_only: bool) -> list[str]:
    """Whom to ask: those that have a socket; if none has, the host daemon, whose absence is then reported."""
    if agent_only:
        return ["agent"]
    return [name for name in ("host", "agent") if socket_of(name).exists()] or ["host"]


def _look(agent_only: bool, vm: VmName | None) -> Vms:
    """What the daemons tell, judged. PeerUnreachable or VmError if nobody tells anything."""
    told = ask_both(socket_of("host").parent, _daemons(agent_only), vm)
    say(*(f"remusdb: {warning}" for warning in told.warnings), err=True)
    if told.errors and not told.vms:
        raise next(iter(told.errors.values()))
    if vm is not None and not told.vms:
        raise VmError(f"there is no VM {vm} here")
    for error in told.unreachable.values():
        say(f"remusdb: {error.id} {error}", err=True)
    return told.judged(named=vm is not None, host_needed=not agent_only)
