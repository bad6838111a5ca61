# SPDX-License-Identifier: Apache-2.0
"""One VM as the two daemons of one host see it, as one state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
        """Why, or ""."""
        return str(self.told.get("reason") or "")
