# SPDX-License-Identifier: Apache-2.0
"""What a takeover does, step by step; core/backup_takeover.py decides on them. Each may take long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import libvirt

from remusdb.core.backup_events import ArbiterRead, Claimed, NotResumed, Runs, TakeOver
from remusdb.core.ownership import Rule, Verdict, give_back, take_over
from remusdb.errors import PeerUnreachable, RemusError, VmError
from remusdb.log import VmLog
from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.domain import connect
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.standby.machine import StandbyMachine

log = logging.getLogger(__name__)

APPLY_S = 30.0
CALL_S = 5.0
ASK_AGAIN_S = 0.1


def read_arbiter(context: Context, vm: str, asked: TakeOver, owner: str, term: int) -> ArbiterRead:
    """What the arbiter has of the VM."""
    assert context.arbiter is not None
    try:
        return ArbiterRead(asked, owner, term, context.arbiter.read(vm))
    except PeerUnreachable as exc:
        return ArbiterRead(asked, owner, term, away=str(exc))


def win(context: Context, vm: str, owner: str, term: int, waiting: Callable[[str], None]) -> Claimed:
    """Claim the VM until the answer is definite.

    `waiting` is told, each time that there is no definite answer, what the matter seems to be.
    """
    claim = context.claim(vm, take_over(context.name, owner, term))
    while claim.verdict is Verdict.UNKNOWN:
        waiting(_problem(context))
        time.sleep(ASK_AGAIN_S)
        claim = context.claim(vm, take_over(context.name, owner, term))
        if claim.verdict is Verdict.UNREACHED:  # the first try may still have been seen
            claim = type(claim)(Verdict.UNKNOWN, None)
    return Claimed(claim.verdict, claim.record)


def _problem(context: Context) -> str:
    """What the matter with the arbiter seems to be. The claim may be won already: nothing here may end the asking."""
    try:
        return context.arbiter_problem()
    except Exception as exc:  # task boundary
        log.exception("the arbiter's health is not known")
        return f"it does not answer, and its health is not known: {type(exc).__name__}: {exc}"


def drain(machine: StandbyMachine, vm: str) -> None:
    """Until every committed epoch is in the replica, or applying failed."""
    while not machine.wait_applied(APPLY_S):
        VmLog(log, vm).warning("epochs are still being applied")


def resume(machine: StandbyMachine, vm: str, stays: bool) -> Runs | NotResumed:
    """Let the standby run: from here on it is the VM."""
    try:
        resets = machine.resume(stays)
    except RemusError as exc:
        VmLog(log, vm).error("the standby cannot be resumed, its disks are booted: %s", exc)
        return NotResumed(exc)
    return Runs(time.time_ns(), resets=resets)


def cold_start(machine: StandbyMachine, stays: bool, cold: str) -> Runs:
    """Boot its disks. RemusError when the VM cannot be run here at all."""
    machine.cold_start(stays)
    return Runs(time.time_ns(), cold)


def runs(libvirt_uri: str, vm: str) -> bool:
    """Whether libvirt has the VM running, and not paused. Waits for a libvirt that is away."""
    calls = BlockingCalls(CALL_S)
    while True:
        try:
            return calls.call(f"VM {vm}", _is_running, connect(libvirt_uri, calls), vm)
        except VmError as exc:
            VmLog(log, vm).warning("libvirt does not say whether it runs: %s", exc)
            time.sleep(1.0)


def _is_running(connection: libvirt.virConnect, vm: str) -> bool:
    found = [domain for domain in connection.listAllDomains() if domain.name() == vm]
    return bool(found) and found[0].state()[0] == libvirt.VIR_DOMAIN_RUNNING


def hand_back(context: Context, vm: str, owner: str, term: int) -> None:
    """Tell the arbiter that `owner` may have the VM again, until it has heard."""
    rule: Rule = give_back(context.name, owner, term)
    while (verdict := context.claim(vm, rule).verdict) not in (Verdict.WON, Verdict.LOST):
        VmLog(log, vm).warning(
            "the arbiter has not been told yet that %s may run the VM again (%s)", owner, verdict.value
        )
        time.sleep(1.0)
