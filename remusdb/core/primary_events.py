# SPDX-License-Identifier: Apache-2.0
"""What the primary's side of a session is told: see `primary.py`, and `primary_effects.py` for what it wants done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from remusdb.core.ownership import Claim
from remusdb.reasons import Reason

Timer = Literal["word", "solo", "commit", "answer"]


# --- events: from protect(), in this order ---


@dataclass(frozen=True)
class Opened:
    """The VM was found; nothing was begun."""


@dataclass(frozen=True)
class Adopted:
    """Gates of an earlier worker are there, and are shut."""


@dataclass(frozen=True)
class Welcomed:
    """The agent would keep a fresh session of `term`."""

    term: int


@dataclass(frozen=True)
class SessionClaimed:
    """What the arbiter says of this session: WON or LOST."""

    claim: Claim
    key: str  # of its record, for the operator


@dataclass(frozen=True)
class Begun:
    """The agent keeps the session of `term`, and the arbiter, where there is one, knows it. `facts`: see `Save`."""

    term: int
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Copied:
    """The agent has all of the initial sync. `facts`: see `Save`."""

    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settled:
    """The first epoch is committed, and it was waited for whether QEMU there would take the VM's state."""


@dataclass(frozen=True)
class Abandoned:
    """protect() failed. `again`: it is one of those failures after which it is begun again."""

    why: Reason
    again: bool = False


# --- events: from the agent ---


@dataclass(frozen=True)
class Acked:
    """The agent holds everything up to `epoch` of `term`."""

    term: int
    epoch: int


@dataclass(frozen=True)
class Lost:
    """The connection is gone; it is tried again."""

    why: str


@dataclass(frozen=True)
class Resumed:
    """The agent took the session up again on connection number `line`; it holds epoch `committed`, and `taken` frames
    of the initial sync. Answered by `Attach`, `SayBye` or `HangUp` of that line, perhaps much later."""

    term: int
    committed: int
    taken: int = 0
    line: int = 0


@dataclass(frozen=True)
class Renounced:
    """The agent gave its standby up: it cannot take over any more."""

    why: str


@dataclass(frozen=True)
class FencedOff:
    """The agent's host runs the VM, in `term`."""

    term: int
    why: str


@dataclass(frozen=True)
class Broken:
    """Nothing more will be heard of the agent: this side failed to listen."""

    why: str


@dataclass(frozen=True)
class Declined:
    """The agent was asked to take over, and does not."""

    why: str


# --- events: from this host ---


@dataclass(frozen=True)
class Failed:
    """Copying, cutting or shipping cannot go on. `changed`: because the VM has other devices."""

    why: Reason
    changed: bool = False


@dataclass(frozen=True)
class VmLives:
    """LookAtVm: QEMU is there."""


@dataclass(frozen=True)
class VmEnds:
    """LookAtVm: QEMU is gone, or ends. `crashed`: it surely was killed, or crashed."""

    crashed: bool


@dataclass(frozen=True)
class VmEnded:
    """AskWhoEndedIt: whether somebody `wanted` the VM off, `with_host`: since this host shuts down."""

    wanted: bool
    with_host: bool
    why: Reason


@dataclass(frozen=True)
class LastCut:
    """StopAndCut: the VM stands still, and `epoch` holds all of it."""

    epoch: int


@dataclass(frozen=True)
class NotCut:
    """StopAndCut: that failed."""

    why: str


@dataclass(frozen=True)
class TimeIsUp:
    """A timer that was set has run out."""

    timer: Timer


@dataclass(frozen=True)
class ArbiterSaid:
    """The answer to AskArbiter."""

    claim: Claim


# --- events: commands, each answered by `Answer`, or by the end of the session ---


@dataclass(frozen=True)
class Unprotect:
    """An operator ends protection. `peer_is_dead`: it is the operator's word that the agent cannot take over."""

    peer_is_dead: bool = False


@dataclass(frozen=True)
class UnprotectOrphan:
    """An operator ends what a worker that is gone left. `word`: the agent said, in `term`, that it cannot take over."""

    term: int
    word: bool
    peer_is_dead: bool
    why: str = ""


@dataclass(frozen=True)
class Switchover:
    """An operator moves the VM. `still`: it stands still already, by somebody's will."""

    still: bool


Event = (
    Opened
    | Adopted
    | Welcomed
    | SessionClaimed
    | Begun
    | Copied
    | Settled
    | Abandoned
    | Acked
    | Lost
    | Resumed
    | Renounced
    | FencedOff
    | Broken
    | Declined
    | Failed
    | VmLives
    | VmEnds
    | VmEnded
    | LastCut
    | NotCut
    | TimeIsUp
    | ArbiterSaid
    | Unprotect
    | UnprotectOrphan
    | Switchover
)
