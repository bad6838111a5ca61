# SPDX-License-Identifier: Apache-2.0
"""What a backup is to do, as values: see backup_events.py for when each is performed, and by whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from remusdb.core.backup_events import Asker, Forget, Hailed, Stop, TakeOver
from remusdb.core.messages import Hello, Refuse
from remusdb.core.roles import Role
from remusdb.core.wire import FrameType
from remusdb.reasons import Reason

# --- done at once ---


@dataclass(frozen=True, slots=True)
class Save:
    """Make it durable: role, why, and the other fields of VmState that change. RemusError where it cannot be."""

    role: Role
    why: Reason
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Learn:
    """Make a newer term durable, of which nothing is begun. RemusError."""

    term: int


@dataclass(frozen=True, slots=True)
class RequireRoom:
    """CannotProtect where there is no memory for this VM's standby."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class RequireSilence:
    """RefusedForSafety where `owner` was heard since `heard`."""

    owner: str
    heard: float


@dataclass(frozen=True, slots=True)
class Admit:
    """From here on this connection feeds the standby; its WELCOME is sent by whoever receives on it."""

    line: int
    term: int
    committed: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """Its HELLO is answered by this, by whoever receives on it."""

    line: int
    refuse: Refuse


@dataclass(frozen=True, slots=True)
class LetGo:
    """This connection feeds the standby no more. `close` it; else whoever receives on it will."""

    line: int
    close: bool


@dataclass(frozen=True, slots=True)
class Apply:
    """A committed epoch, to be applied after those before it."""

    term: int
    epoch: int
    data: object


@dataclass(frozen=True, slots=True)
class ReleaseRoom:
    """The standby is gone, or is a VM whose memory is taken."""


@dataclass(frozen=True, slots=True)
class Try:
    """A thread of its own asks for this takeover, with a number, times and arbiter. NoThread."""

    why: Reason


@dataclass(frozen=True, slots=True)
class SetAside:
    """Move what a session left in the VM's images folder aside in it, by this term."""

    term: int


@dataclass(frozen=True, slots=True)
class Tell:
    """An event for history and hooks; `was`: the state before it, `epoch`: None for the committed one."""

    event: Literal["protect", "protected", "takeover", "promoted", "failed", "renounced"]
    was: str
    why: Reason
    by: Asker = "agent"
    epoch: int | None = None
    heard_ms_ago: float | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """The arbiter does not answer, and why; or, with `over`, it does again."""

    why: Reason
    over: bool = False


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A takeover, measured."""

    term: int
    epoch: int
    resume_ms: float
    how: Reason


@dataclass(frozen=True, slots=True)
class Outcome:
    """What whoever asked for a takeover, or that a VM be forgotten, is told: done, or why not."""

    number: int
    error: Exception | None = None
    taken: TakenOver | None = None


AtOnce = (
    Save | Learn | RequireRoom | RequireSilence | Admit | Refused | LetGo | Apply | ReleaseRoom | Try | SetAside
    | Tell | Trouble | Outcome
)  # fmt: skip

# --- begun ---


@dataclass(frozen=True, slots=True)
class Later:
    """Hand the event over again once another one was worked off: a session begins or ends."""

    event: Hailed | Forget | Stop


@dataclass(frozen=True, slots=True)
class LookUp:
    """-> LookedUp. Asks the arbiter, for what speaks against it elsewhere was not found. Changes nothing."""

    hailed: Hailed


@dataclass(frozen=True, slots=True)
class YieldVm:
    """-> Quarantined. The host daemon quarantines what this host ran of the VM: `hailed`'s sender has it."""

    hailed: Hailed


@dataclass(frozen=True, slots=True)
class StartStandby:
    """-> Started, NotStarted."""

    line: int
    term: int
    hello: Hello


@dataclass(frozen=True, slots=True)
class CloseStandby:
    """-> Gone. Take away what is here of the session, if anything is."""

    term: int
    keep_images: bool = True


@dataclass(frozen=True, slots=True)
class Sweep:
    """-> Gone. The same, of what an agent that died left; in a thread of its own."""


@dataclass(frozen=True, slots=True)
class Send:
    """A frame to the primary; nothing comes of it, whether it can be sent or not. `reason`: of a RENOUNCE."""

    line: int
    type: FrameType
    term: int
    epoch: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Decline:
    """-> Declined. DECLINE to whoever asked for a switchover."""

    line: int
    serial: int
    term: int
    why: str


@dataclass(frozen=True, slots=True)
class Prove:
    """See, from now on, whether QEMU would take the state of this session's standby. Nothing comes of it here."""

    term: int


@dataclass(frozen=True, slots=True)
class AwaitRoom:
    """Read no more of this connection until what waits to be applied is within bounds. Nothing comes of it."""

    line: int


@dataclass(frozen=True, slots=True)
class ReadArbiter:
    """-> ArbiterRead."""

    asked: TakeOver
    owner: str
    term: int


@dataclass(frozen=True, slots=True)
class Claim:
    """-> ArbiterWaits as often as it is so, then Claimed. `take_over` from `owner` in `term`, until it is definite."""

    owner: str
    term: int


@dataclass(frozen=True, slots=True)
class Drain:
    """-> Drained once all that was committed is applied, or applying failed; TakeoverFailed."""


@dataclass(frozen=True, slots=True)
class Resume:
    """-> Runs, NotResumed, TakeoverFailed. `stays`: it stands still afterwards."""

    stays: bool


@dataclass(frozen=True, slots=True)
class ColdStart:
    """-> Runs, TakeoverFailed. Boot the VM from the standby's disks."""

    stays: bool
    cold: str


@dataclass(frozen=True, slots=True)
class Announce:
    """-> Announced. Tell the network where the VM is now; what was its standby is libvirt's from here on."""

    addresses: tuple[str, ...]
    at_ns: int
    how: Reason


@dataclass(frozen=True, slots=True)
class HandBack:
    """In a thread of its own: the arbiter is told, until it hears, that `owner` may have the VM again. No event."""

    owner: str
    term: int


@dataclass(frozen=True, slots=True)
class LookIfRuns:
    """-> Found. In a thread of its own, until libvirt says."""


@dataclass(frozen=True, slots=True)
class LookIfThere:
    """-> LookedIfThere."""


Begun = (
    Later | LookUp | YieldVm | StartStandby | CloseStandby | Sweep | Send | Decline | Prove | AwaitRoom | ReadArbiter
    | Claim | Drain | Resume | ColdStart | Announce | HandBack | LookIfRuns | LookIfThere
)  # fmt: skip
Effect = AtOnce | Begun
