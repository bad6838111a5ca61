# SPDX-License-Identifier: Apache-2.0
"""What can happen to a VM that is kept on this host, as values; `core/backup.py` decides on them.

Whoever drives the core (the agent's `Replica`, or a test's world without any IO) hands over one event at a time,
`for effect in backup.handle(event)`, to its end, and performs what comes (core/backup_effects.py):

  - An effect that is done *at once* is done before the next is asked for; what stands after it happens only then. If it
    raises, the error is thrown into the generator (`core/drive.py` does both), where something else may be decided.
  - An effect that is *begun* takes its time. It is performed after the event is worked off, those of one event in their
    order; meanwhile other events are handed over. What came of it is a new event, which the effect's docstring names.
    In a test's world it may come at any later time, or never, for the daemon died.
  - While `backup.rereads`, a `Read` with what the state file says now comes before each event that is marked [reads].
  - `handle` raises BadFrame for what a peer must not send; the connection is then broken: `Lost`.
  - A crash: between any two effects the core is thrown away, and with it every standby and connection, not a VM that
    runs. A new `Backup` is made of what `Save` left, and is told `Recover`.

Connections have numbers, of which none is given twice: `line`. A session, and its standby, is named by its term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from remusdb.core.messages import Hello, Refuse
from remusdb.core.ownership import Ownership, Verdict
from remusdb.core.roles import Role
from remusdb.reasons import Reason

Cause = Literal["silence", "switchover", "order"]
Asker = Literal["agent", "operator"]


@dataclass(frozen=True, slots=True)
class Durable:
    """What the state file of the VM says (`remusdb/state.py` has the words)."""

    role: Role = "none"
    term: int = 0
    owner: str = ""
    peer: str = ""
    uuid: str = ""
    why: Reason | None = None
    armed: bool = False
    quarantined: bool = False
    resuming: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """The state file, as another process of this host may have left it."""

    durable: Durable


@dataclass(frozen=True, slots=True)
class Recover:
    """The agent has just started. `arbiter`: whether this host has one."""

    arbiter: bool


@dataclass(frozen=True, slots=True)
class Found:
    """The VM that an agent which died was taking over runs here, since `at_ns`, or does not."""

    runs: bool
    at_ns: int


@dataclass(frozen=True, slots=True)
class Hailed:
    """[reads] HELLO came over a new connection of the host that `peer`'s certificate names."""

    line: int
    peer: str
    hello: Hello


@dataclass(frozen=True, slots=True)
class LookedUp:
    """[reads] What must be known before a new session is agreed on.

    `others`: VMs of another name that have its UUID here. `arbiter`: the id of this host's, `record` what it has of the
    VM, `away` why it does not say.
    """

    hailed: Hailed
    others: tuple[str, ...] = ()
    arbiter: str = ""
    record: Ownership | None = None
    away: str = ""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """[reads] What this host had of the VM is out of the way; or why not (`problem`, `hint`)."""

    hailed: Hailed
    problem: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """The standby for the session that was agreed on over `line` is there."""

    line: int


@dataclass(frozen=True, slots=True)
class NotStarted:
    """It is not, or the HELLO failed otherwise. `refuse`: what its sender is told."""

    line: int
    reason: str
    refuse: Refuse


@dataclass(frozen=True, slots=True)
class Committed:
    """An epoch is here, whole. `crowded`: with it, more waits to be applied than should; `data` is the driver's."""

    line: int
    term: int
    epoch: int
    addresses: tuple[str, ...] = ()
    stays: bool = False
    crowded: bool = False
    data: object = None


@dataclass(frozen=True, slots=True)
class Applied:
    """Memory and disks of the session's standby are exactly this epoch."""

    term: int
    epoch: int
    crowded: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """The standby of this session is torn, or its disks cannot be read."""

    term: int
    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection broke. `hopeless`: to take the session up again would break it again."""

    line: int
    reason: str
    hopeless: bool = False


@dataclass(frozen=True, slots=True)
class Bye:
    """The primary ends the session. `forget`: for good, nothing is to be kept for later."""

    line: int
    reason: str
    forget: bool = False


@dataclass(frozen=True, slots=True)
class SwitchoverAsked:
    """The primary stopped its VM and asks this side to go on; without a yes it goes on itself."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Declined:
    """DECLINE, number `serial`, went out, or could not."""

    serial: int
    why: str


@dataclass(frozen=True, slots=True)
class CopySilent:
    """The primary of this session was not heard for the patience that an initial sync has, since `heard`."""

    term: int
    patience_ms: int
    heard: float = 0.0


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Take the VM over: because its primary is silent, or asks for it, or an operator does.

    `number`: of this request, for its `Outcome`. `heard`: the last sign of life on which silence was judged; a newer
    one calls it off. `word`: an operator's, that the primary is dead; it stands for the arbiter's. `arbiter`: whether
    this host has one. Times: time.time_ns(), and a monotonic clock in seconds.
    """

    number: int
    cause: Cause
    why: Reason
    by: Asker = "agent"
    at_ns: int = 0
    silent_ms: float = 0.0
    heard: float | None = None
    word: bool = False
    arbiter: bool = False


@dataclass(frozen=True, slots=True)
class ArbiterRead:
    """What the arbiter has of the VM, before anything is staked. `away`: why it does not say."""

    asked: TakeOver
    owner: str
    term: int
    record: Ownership | None = None
    away: str = ""


@dataclass(frozen=True, slots=True)
class ArbiterWaits:
    """The claim has no definite answer yet; `problem`: what the matter seems to be."""

    problem: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """The definite answer: WON, LOST, or UNREACHED, the arbiter never saw the claim."""

    verdict: Verdict
    record: Ownership | None = None


@dataclass(frozen=True, slots=True)
class Drained:
    """Nothing more will be applied."""


@dataclass(frozen=True, slots=True)
class Runs:
    """The VM runs here, since `at_ns`. `cold`: why its standby could not be resumed, if its disks were booted.

    `resets`: so many connections that were inside a transaction are reset.
    """

    at_ns: int
    cold: str | None = None
    resets: int = 0


@dataclass(frozen=True, slots=True)
class NotResumed:
    """The standby cannot be resumed."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Announced:
    """The network was told."""

    at_ns: int
    how: Reason


@dataclass(frozen=True, slots=True)
class TakeoverFailed:
    """A step of the takeover that is under way failed, and there is nothing else to try; with `asked`, of one that was
    asked for and is not under way."""

    error: Exception
    asked: TakeOver | None = None


@dataclass(frozen=True, slots=True)
class Gone:
    """What was here is taken away."""


@dataclass(frozen=True, slots=True)
class Forget:
    """[reads] An operator's word that the VM's owner, as this host knows it, is its owner no more.

    `lose_replica`: that a whole replica, whose primary is not connected, is not needed. `tried`: a silence is being
    looked into just now.
    """

    number: int
    lose_replica: bool = False
    tried: bool = False


@dataclass(frozen=True, slots=True)
class LookedIfThere:
    """Whether libvirt has a domain of the VM's name here; `error`: why it does not say."""

    there: bool
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """The daemon ends."""


Event = (
    Read | Recover | Found | Hailed | LookedUp | Quarantined | Started | NotStarted | Committed | Applied | Broken
    | Lost | Bye | SwitchoverAsked | Declined | CopySilent | TakeOver | ArbiterRead | ArbiterWaits | Claimed | Drained
    | Runs | NotResumed | Announced | TakeoverFailed | Gone | Forget | LookedIfThere | Stop
)  # fmt: skip
READS = (Hailed, LookedUp, Quarantined, Forget)
