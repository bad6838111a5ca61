# SPDX-License-Identifier: Apache-2.0
"""All that a backup knows of one VM while it decides: plain data, which the rules of backup_*.py read and change."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, fields, replace
from typing import Any

from remusdb.core.backup_effects import Effect, Save
from remusdb.core.backup_events import Durable, Forget, TakeOver
from remusdb.core.messages import Hello
from remusdb.core.owed import Owed
from remusdb.core.roles import OWNING, Role
from remusdb.core.standby import Phase, Standby
from remusdb.reasons import Code, Reason

Effects = Generator[Effect, None, None]

_DURABLE = frozenset(field.name for field in fields(Durable))


@dataclass(frozen=True)
class Beginning:
    """A session that was agreed on. `before`: what was known, for a HELLO that fails makes nobody the owner."""

    line: int
    hello: Hello
    term: int
    before: Durable


@dataclass(frozen=True)
class Taking:
    """The takeover that is under way: from `owner`, in the newer `term`."""

    asked: TakeOver
    owner: str
    term: int


@dataclass(frozen=True)
class Ended:
    """A replica that was given up: told once it is gone."""

    was: str
    why: Reason


class State:
    """One VM on this host."""

    def __init__(self, vm: str, host: str, durable: Durable, prefix: str = "") -> None:
        """`prefix`: of the arbiter's keys, for a hint."""
        self.vm, self.host, self.prefix = vm, host, prefix
        self.durable = durable
        self.standby = Standby(durable.term, _phase(durable.role, Phase.EMPTY), durable.owner)
        self.why = durable.why or Reason.of(Code.NO_SESSION)
        self.line: int | None = None  # the connection that feeds the standby
        self.session_term = 0  # of the session that fed it; a takeover does not change it
        self.owed = Owed()
        self.addresses: tuple[str, ...] = ()
        self.stays = False  # the VM stood still at the last epoch, and is to stand still after a takeover
        self.torn: Reason | None = None  # why the replica cannot be resumed, found while the arbiter was asked
        self.beginning: Beginning | None = None
        self.taking: Taking | None = None
        self.ended: Ended | None = None
        self.forgetting: Forget | None = None
        self.asker: int | None = None  # the connection that waits for the answer to a switchover
        self.asked_times = 0  # how often a switchover was asked for

    def read(self, durable: Durable) -> None:
        """Without a replica of its own, what other processes of this machine did meanwhile is what counts."""
        self.durable = durable
        before = self.standby
        self.standby = Standby(durable.term, _phase(durable.role, before.phase), durable.owner)
        self.standby.committed = before.committed  # a figure of what was, for status
        self.why = durable.why or self.why

    def save(self, role: Role, why: Reason, **changes: Any) -> Effects:
        """Make it durable; only then it is known here."""
        self.why = why
        yield Save(role, why, changes)
        known = {name: value for name, value in changes.items() if name in _DURABLE}
        self.durable = replace(self.durable, role=role, why=why, **known)


def _phase(role: Role, before: Phase) -> Phase:
    """What the role on the disk means: "promoting" is also what is left there of a VM whose last word was not saved."""
    if role == "promoting":
        return Phase.PROMOTED if before is Phase.PROMOTED else Phase.UNSETTLED
    return Phase.PROMOTED if role in OWNING else Phase.EMPTY
