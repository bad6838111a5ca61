# SPDX-License-Identifier: Apache-2.0
"""One VM as the two daemons of one host see it, as one state."""

from __future__ import annotations

from dataclasses import dataclass

from remusdb.control.status import StandbyStatus, VmStatus
from remusdb.reasons import Code

_ACTIVE = ("seeding", "ready", "deciding")  # of a replica


@dataclass(frozen=True)
class View:
    """`host` and `agent` are what each daemon told; None where it told nothing."""

    host: VmStatus | None
    agent: StandbyStatus | None

    @property
    def told(self) -> VmStatus | StandbyStatus | None:
        """The one that counts: a standby is a libvirt domain too, which its host daemon calls unprotected."""
        host, agent = self.host, self.agent
        if agent is not None and agent.state in _ACTIVE:
            return agent
        if agent is not None and agent.state == "promoted" and host is not None and host.state == "unprotected":
            return agent
        return host or agent

    @property
    def state(self) -> str:
        """The state, or "" when nobody told."""
        return self.told.state if self.told else ""

    @property
    def code(self) -> Code | None:
        """Why, as a code."""
        return self.told.why.code if self.told and self.told.why else None

    @property
    def reason(self) -> str:
        """Why, or ""."""
        return self.told.reason if self.told else ""
