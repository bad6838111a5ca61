# SPDX-License-Identifier: Apache-2.0
"""What a host durably is to a VM (`remusdb/state.py` keeps it)."""

from __future__ import annotations

from typing import Any, Literal

Role = Literal["none", "seeding", "protected", "solo", "fenced", "standby", "promoting", "promoted"]
PROMOTED = ("promoting", "promoted")
OWNING = ("seeding", "protected", "solo", *PROMOTED)  # this host has the right to let the VM speak, as far as it knows

# What is forgotten of a VM that its owner, or an operator, released this host from. The term never is.
NOBODYS: dict[str, Any] = {"owner": "", "peer": "", "uuid": "", "quarantined_disks": {}, "quarantined_formats": {}}
