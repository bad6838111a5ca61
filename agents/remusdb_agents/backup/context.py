# SPDX-License-Identifier: Apache-2.0
"""What all replicas of one agent share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remusdb.arbiter.arbiter import Arbiter
from remusdb.arbiter.health import Health
from remusdb.config import AgentConfig
from remusdb.control import call
from remusdb.control.api import Fence
from remusdb.core.messages import Hello
from remusdb.core.ownership import Claim, Rule, Verdict
from remusdb.errors import CannotProtect, PeerUnreachable
from remusdb.history import History
from remusdb.names import require_name
from remusdb.state import StateStore
from remusdb_agents.backup.admission import Admission

FENCE_S = 60.0  # destroying a VM and moving its disks aside


if TYPE_CHECKING:
    from remusdb_agents.backup.disks.base_copy import QuarantinedDisk
    from remusdb_agents.backup.ears import Ears
    from remusdb_agents.backup.inbox import WholeEpoch
    from remusdb_agents.backup.standby.machine import StandbyMachine

    # `StandbyMachine`, which needs the context in its turn; tests hand in another.
    MakeMachine = Callable[
        ["Context", Hello, Callable[[WholeEpoch], None], Callable[[Exception], None], Mapping[str, QuarantinedDisk]],
        StandbyMachine,
    ]


@dataclass(frozen=True)
class Context:
    """Settings, durable state, and whom to ask."""

    config: AgentConfig
    store: StateStore
    history: History
    arbiter: Arbiter | None
    admission: Admission
    machine: MakeMachine
    ears: Ears | None = None  # for heartbeat datagrams, where they can be heard here

    @property
    def name(self) -> str:
        """This host."""
        return self.config.agent.name

    def cluster(self) -> str:
        """The arbiter's id, empty without one. PeerUnreachable when it does not answer."""
        return self.arbiter.cluster() if self.arbiter else ""

    def claim(self, vm: str, rule: Rule) -> Claim:
        """Ask the arbiter; without one, whoever asks is right (the primary then never goes on alone)."""
        return self.arbiter.claim(vm, rule) if self.arbiter else Claim(Verdict.WON, None)

    def arbiter_problem(self) -> str:
        """Why the arbiter does not decide, in words, with what to do."""
        health = self.arbiter.health() if self.arbiter else Health()
        return f"{health.problem}: {health.hint}" if health.problem else "its answer was lost"

    def yield_vm(self, vm: str, owner: str, term: int) -> None:
        """Have the host daemon of this machine put its own VM away: `owner` has it, in the newer `term`."""
        asked = Fence(vm=require_name(vm), owner=owner, term=term)
        try:
            call(self.config.agent.run_dir / "host.sock", asked, timeout_s=FENCE_S)
        except PeerUnreachable as exc:
            raise CannotProtect(
                f"this host ran VM {vm} before, and its host daemon is not there to quarantine it: {exc}",
                hint=f"start the host daemon on {self.name}, then try again",
            ) from exc
