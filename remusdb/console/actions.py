# SPDX-License-Identifier: Apache-2.0
"""What can be done by the console: which of the CLI's verbs, when each is offered, and what it does to clients.

Invariant: an action asks a daemon for what the CLI asks it for; it is the daemon that decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from remusdb.control.api import Failover, Protect, Rehearse, Reprotect, Switchover, Unprotect
from remusdb.control.codec import Request
from remusdb.control.status import StandbyStatus, VmStatus
from remusdb.control.verdict import Status
from remusdb.errors import UsageError
from remusdb.names import VmName

REHEARSE_S = 10.0
COPIED = (
    "They notice nothing while it is copied, except that the link and the disks are busy. After that each reply waits "
    "until the backup holds what it depends on: some milliseconds."
)


@dataclass(frozen=True)
class Action:
    """One of them. In its texts `{vm}` and `{peer}` stand for names."""

    key: str
    daemon: Literal["host", "agent"]
    label: str
    happens: str  # to the VM and this pair
    clients: str  # to them
    offered: Callable[[Status], bool]
    request: Callable[[VmName, str], Request[Any]]
    asks_host: bool = False  # the operator names the host
    danger: bool = False


def _own(one: Status, *states: str) -> bool:
    return isinstance(one, VmStatus) and one.state in states


def _kept(one: Status, *states: str) -> bool:
    return isinstance(one, StandbyStatus) and one.state in states


ACTIONS = (
    Action(
        "protect", "host", "Protect",
        "{vm} is copied to the host you name, while it runs. That takes as long as its memory and disks need to cross "
        "the link. Once it is done, {vm} is protected.",
        COPIED,
        lambda one: _own(one, "unprotected") and one.term == 0 and getattr(one, "running", False),
        lambda vm, to: Protect(vm=vm, to=to), asks_host=True,
    ),
    Action(
        "reprotect", "host", "Protect again",
        "{vm} is protected to the host you name. What its old images there still hold is not sent again.",
        COPIED,
        lambda one: (_own(one, "unprotected") and one.term > 0 and getattr(one, "running", False))
        or _own(one, "solo") or _kept(one, "promoted"),
        lambda vm, to: Reprotect(vm=vm, to=to), asks_host=True,
    ),
    Action(
        "switchover", "host", "Switch over",
        "{vm} moves to {peer}, and runs there. Afterwards it is not protected until it is protected again from there.",
        "Connections stay, and nothing is lost. Clients see one pause, as a rule of less than a second.",
        lambda one: _own(one, "protected"),
        lambda vm, _to: Switchover(vm=vm),
    ),
    Action(
        "unprotect", "host", "End protection",
        "{vm} runs on here without a backup, and {peer} forgets its replica.",
        "They notice nothing now. But if this host fails after this, they lose their connections and all that was "
        "committed here.",
        lambda one: _own(one, "seeding", "protected", "held", "solo"),
        lambda vm, _to: Unprotect(vm=vm), danger=True,
    ),
    Action(
        "failover", "agent", "Fail over to this host",
        "{vm} is resumed here, where its last committed epoch left it. If it still runs on {peer}, it is fenced there: "
        "it can send nothing more, and is shut off for good.",
        "Connections stay. What {peer} has not sent yet is worked again here: no reply that a client has seen is lost. "
        "Where a planned move is possible, switch over on {peer} instead.",
        lambda one: _kept(one, "ready", "deciding"),
        lambda vm, _to: Failover(vm=vm), danger=True,
    ),
    Action(
        "rehearse", "agent", "Rehearse a takeover",
        f"A copy of {{vm}}'s last committed state is resumed here for {REHEARSE_S:.0f} seconds without a network, "
        "looked at, and thrown away. The replica stands still meanwhile; what arrives for it waits in memory.",
        "They notice nothing.",
        lambda one: _kept(one, "ready"),
        lambda vm, _to: Rehearse(vm=vm, seconds=REHEARSE_S),
    ),
)  # fmt: skip


def offered(one: Status) -> list[Action]:
    """Those that make sense for a VM as it is now."""
    return [action for action in ACTIONS if action.offered(one)]


def named(key: str) -> Action:
    """The action of this name. UsageError where there is none."""
    for action in ACTIONS:
        if action.key == key:
            return action
    raise UsageError(f"there is no action {key!r} here", hint=f"known: {', '.join(one.key for one in ACTIONS)}")
