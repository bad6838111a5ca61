# SPDX-License-Identifier: Apache-2.0
"""One VM as the two daemons of one host see it, as one state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# States in which the VM of that host is the VM, as far as this host knows.
_OWNING = ("unprotected", "seeding", "protected", "held", "solo", "failed", "promoted")
_ACTIVE = ("seeding", "ready", "deciding")  # of a replica


@dataclass(frozen=True)
class View:
    """`host` and `agent` are what each daemon told; empty where it told nothing."""

    host: dict[str, Any]
    agent: dict[str, Any]

    @property
    def told(self) -> dict[str, Any]:
        """The one that counts: a standby is a libvirt domain too, which its host daemon calls unprotected."""
        agent = self.agent.get("state")
        if agent in _ACTIVE or (agent == "promoted" and self.host.get("state") == "unprotected"):
            return self.agent
        return self.host or self.agent

    @property
    def state(self) -> str:
        """The state, or "" when nobody told."""
        return str(self.told.get("state") or "")

    @property
    def reason(self) -> str:
        return str(self.told.get("reason") or "")

    @property
    def term(self) -> int:
        """The newest term that either of them knows."""
        return max(int(told.get("term") or 0) for told in (self.host, self.agent))

    @property
    def backup(self) -> bool:
        """Whether this host keeps a replica that it has not taken over."""
        return self.told is self.agent and self.state != "promoted"

    @property
    def owning(self) -> bool:
        """Whether this host's VM is the VM, not a replica and not fenced."""
        return not self.backup and self.state in _OWNING
