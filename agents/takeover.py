# SPDX-License-Identifier: Apache-2.0
"""The steps of a takeover: who may, then the VM.

    ask the arbiter (nothing is acknowledged from here on) ─▶ term on disk ─▶ last epoch applied ─▶ resume ─▶ announce
                   │ no: the primary went on alone                              │ standby dead: boot from its disks
                   ▼                                                            ▼ that fails too: give the VM back
              renounce                                                     nobody runs it here

Pure of the replica's threads and locks: `Replica.promote` calls these in order.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from remusdb.core.ownership import Ownership, Rule, Verdict, give_back, take_over
from remusdb.errors import PeerUnreachable, RefusedForSafety, RemusError
from remusdb_agents.context import Context
from remusdb_agents.machine import Machine

log = logging.getLogger(__name__)

APPLY_S = 30.0
ASK_AGAIN_S = 0.1
WARM, COLD = "resumed where it was", "booted from its disks, the warm standby was lost"


class Overruled(RefusedForSafety):
    """The arbiter gave the VM to somebody else: this replica is worth nothing any more."""


def require_arbiter(context: Context, vm: str, owner: str, term: int) -> None:
    """Before anything is staked: RefusedForSafety when the arbiter does not answer, Overruled when it says no."""
    if context.arbiter is None:
        return
    try:
        record = context.arbiter.read(vm)
    except PeerUnreachable as exc:
        raise RefusedForSafety(
            f"the arbiter does not answer, so nobody can know whether {owner} went on alone: {exc}",
            hint="bring etcd back; or, if you are sure that the VM does not run there, say --primary-is-dead",
        ) from exc
    if record != Ownership(owner, term):
        raise Overruled(f"by the arbiter {_owner(record)} owns {vm}, not {owner} in term {term}")


def win(context: Context, vm: str, owner: str, term: int) -> bool:
    """Claim the VM until the answer is definite. False: the arbiter never saw it. Overruled: somebody else has it."""
    claim = context.claim(vm, take_over(context.name, owner, term))
    while claim.verdict is Verdict.UNKNOWN:
        time.sleep(ASK_AGAIN_S)
        claim = context.claim(vm, take_over(context.name, owner, term))
        if claim.verdict is Verdict.UNREACHED:  # the first try may still have been seen
            claim = type(claim)(Verdict.UNKNOWN, None)
    if claim.verdict is Verdict.LOST:
        raise Overruled(f"by the arbiter {_owner(claim.record)} owns {vm}")
    return claim.verdict is Verdict.WON


def run(machine: Machine, vm: str, applied: Callable[[], bool]) -> str:
    """Make the replica the VM; how it came up. RemusError when it cannot be run here at all.

    `applied`: whether the replica is exactly the last committed epoch; a torn one must not run.
    """
    while not machine.wait_applied(APPLY_S):
        log.warning("%s: epochs are still being applied", vm)
    if not applied():
        raise RemusError(f"{vm}: the last epoch could not be applied")
    try:
        machine.resume()
        return WARM
    except RemusError as exc:
        log.error("%s: the standby cannot be resumed, its disks are booted: %s", vm, exc)
        machine.cold_start()
        return COLD


def hand_back(context: Context, vm: str, owner: str, term: int) -> None:
    """Tell the arbiter that `owner` may have the VM again, until it has heard."""
    rule: Rule = give_back(context.name, owner, term)
    while (verdict := context.claim(vm, rule).verdict) not in (Verdict.WON, Verdict.LOST):
        log.warning("%s: the arbiter does not hear yet that %s may have the VM again (%s)", vm, owner, verdict.value)
        time.sleep(1.0)


def _owner(record: Ownership | None) -> str:
    return f"{record.owner or 'nobody'} (term {record.term})" if record else "nobody"
