# SPDX-License-Identifier: Apache-2.0
"""What is looked up for a HELLO before it is decided on (core/backup_hello.py), and what it is told when that fails."""

from __future__ import annotations

import logging

from remusdb.core.backup_events import Hailed, LookedUp, Quarantined
from remusdb.core.messages import Refuse
from remusdb.errors import PeerUnreachable, RemusError
from remusdb.log import VmLog
from remusdb.quietly import NOISY
from remusdb_agents.backup.context import Context

log = logging.getLogger(__name__)


def look_up(context: Context, asked: Hailed) -> LookedUp:
    """Nothing is changed. The arbiter, which may take long, is asked for a VM alone that is the only one of its UUID,
    and a primary that uses the same."""
    hello = asked.hello
    others = tuple(vm for vm in context.store.named(hello.uuid) if vm != hello.vm)
    if others:
        return LookedUp(asked, others)
    try:
        arbiter = context.cluster()
        record = context.arbiter.read(hello.vm) if context.arbiter is not None and arbiter == hello.arbiter else None
    except PeerUnreachable as exc:
        return LookedUp(asked, away=str(exc))
    return LookedUp(asked, arbiter=arbiter, record=record)


def quarantine(context: Context, asked: Hailed) -> Quarantined:
    """Have the host daemon of this machine put its own VM away, for the one that said HELLO has it."""
    try:
        context.yield_vm(asked.hello.vm, asked.hello.primary, asked.hello.term)
    except RemusError as exc:
        return Quarantined(asked, str(exc), exc.hint)
    return Quarantined(asked)


def refusal(exc: Exception, vm: str, host: str) -> Refuse:
    """What the sender of a HELLO that failed is told."""
    if isinstance(exc, RemusError):
        return Refuse(reason=str(exc), hint=exc.hint, code="preflight")
    VmLog(log, vm).error("a HELLO failed", exc_info=exc, extra=NOISY)
    hint = f"its log says what: journalctl -u remusdb-agent, on {host}"
    return Refuse("internal error of the agent", hint)
