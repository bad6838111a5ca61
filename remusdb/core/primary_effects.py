# SPDX-License-Identifier: Apache-2.0
"""What the primary's side of a session wants done, as values: see `primary.py`.

Whoever drives `Primary` takes the effects of one event one by one, performs each before it asks for the next, and
throws into the generator what an effect raised. What takes long (`StopAndCut`, `LookAtVm`, `AskWhoEndedIt`,
`AskArbiter`) it does apart, and posts the result as an event. Only one event is worked off at a time.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from remusdb.core.primary_events import Timer
from remusdb.errors import RemusError
from remusdb.reasons import Reason

EndState = Literal["solo", "unprotected"]
Command = Literal["unprotect", "switchover"]
State = Literal["seeding", "protected", "held", "solo", "fenced", "failed", "unprotected"]
# In the history, and to the hooks.
Noted = Literal["protected", "held", "lost", "resumed", "fenced", "failed", "changed", "solo", "unprotect"]


# --- of the gates ---


@dataclass(frozen=True)
class AdoptGates:
    """If an earlier worker left gates: shut what else the VM has, and post `Adopted`."""


@dataclass(frozen=True)
class InstallGates:
    """Put gates on the VM's interfaces, which let everything pass."""


@dataclass(frozen=True)
class HoldOutput:
    """From here on whatever the VM sends waits."""


@dataclass(frozen=True)
class ReleaseEpochs:
    """The agent holds everything up to `epoch`: let go what was marked with it or an earlier one."""

    epoch: int


@dataclass(frozen=True)
class OpenGates:
    """Let everything go, and whatever follows, until `HoldOutput`."""


@dataclass(frozen=True)
class DropHeld:
    """What waits never goes out, and nothing more does."""


@dataclass(frozen=True)
class TakeDown:
    """Take away what protection added to the VM. `open_gates`: the gates, too; else they stay shut, without this
    process."""

    open_gates: bool


# --- of the VM ---


@dataclass(frozen=True)
class StartEpochs:
    """Cut the first epoch at once, and so on."""


@dataclass(frozen=True)
class StopWork:
    """Copy, cut and ship nothing more. `switching`: wait for a VM that is being stopped for a switchover."""

    switching: bool = False


@dataclass(frozen=True)
class StopAndCut:
    """Stop the VM and cut one more epoch, and no other: `LastCut` or `NotCut`."""


@dataclass(frozen=True)
class CutOn:
    """After StopAndCut: epochs as before."""


@dataclass(frozen=True)
class StartVm:
    """The VM was stopped for a switchover, which is off."""


@dataclass(frozen=True)
class LookAtVm:
    """Find out whether QEMU is there: `VmLives` or `VmEnds`."""


@dataclass(frozen=True)
class AskWhoEndedIt:
    """Wait for QEMU's or libvirt's word: `VmEnded`."""


@dataclass(frozen=True)
class RestoreAutostart:
    """libvirt's autostart, as it was found."""


# --- of the agent ---


@dataclass(frozen=True)
class Attach:
    """Send on connection `line` from now on, first what the agent does not hold."""

    line: int
    term: int
    committed: int
    taken: int


@dataclass(frozen=True)
class Detach:
    """There is no connection: what is to be sent waits."""


@dataclass(frozen=True)
class HangUp:
    """Close connection `line`: the session is not resumed on it."""

    line: int
    why: str


@dataclass(frozen=True)
class SayBye:
    """Ask the agent to give its standby up. `forget`: and its disks. `line`: on that connection, else on the one in
    use."""

    why: str
    forget: bool = False
    line: int | None = None


@dataclass(frozen=True)
class SayTakeOver:
    """Ask the agent to take the VM over, as of the last epoch."""


@dataclass(frozen=True)
class FallSilent:
    """No more heartbeats: the agent begins to count."""


@dataclass(frozen=True)
class ClosePeer:
    """Hear and say nothing more."""


# --- of the rest ---


@dataclass(frozen=True)
class Save:
    """Make these fields of the VM's state file durable (`remusdb.state.VmState`)."""

    changes: Mapping[str, Any]


@dataclass(frozen=True)
class AskArbiter:
    """Claim the VM for this host alone, from its session of `term`; `given_back`: which the backup gave back, in a
    session of its own. One try: `ArbiterSaid`."""

    term: int
    given_back: bool = False


@dataclass(frozen=True)
class SetTimer:
    """TimeIsUp comes so much later. Setting it again begins again."""

    timer: Timer
    seconds: float


@dataclass(frozen=True)
class Report:
    """A state, for status; with `event` also for history and hooks."""

    state: State
    why: Reason
    event: Noted | None = None


@dataclass(frozen=True)
class Answer:
    """What became of an order; None: it is done."""

    command: Command
    error: RemusError | None


@dataclass(frozen=True)
class End:
    """The session is over."""


Effect = (
    AdoptGates
    | InstallGates
    | HoldOutput
    | ReleaseEpochs
    | OpenGates
    | DropHeld
    | TakeDown
    | StartEpochs
    | StopWork
    | StopAndCut
    | CutOn
    | StartVm
    | LookAtVm
    | AskWhoEndedIt
    | RestoreAutostart
    | Attach
    | Detach
    | HangUp
    | SayBye
    | SayTakeOver
    | FallSilent
    | ClosePeer
    | Save
    | AskArbiter
    | SetTimer
    | Report
    | Answer
    | End
)

Steps = Generator[Effect, None, None]
