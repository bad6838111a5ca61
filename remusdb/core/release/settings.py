# SPDX-License-Identifier: Apache-2.0
"""What commit protection is told of a VM: in words, it is what a gate's process is started with.

A plain class: a gate's process has no use for more than what Python itself brings, and starts sooner without it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from remusdb.core.release.frames import FLOWS_MAX


@dataclass(frozen=True)
class ReleaseSettings:
    """Ports of the VM where it speaks PostgreSQL's or MySQL's protocol, and the DSCP value by which it marks; 0: none.

    `flows_max`: so many connections are known at most; what more there are waits as with `release = "all"`.
    """

    postgresql_ports: tuple[int, ...] = ()
    mysql_ports: tuple[int, ...] = ()
    mark: int = 0
    flows_max: int = FLOWS_MAX

    def pack(self) -> str:
        """As one argument of a command."""
        return json.dumps(asdict(self))

    @staticmethod
    def unpack(packed: str) -> ReleaseSettings:
        """What `pack` made. ValueError, TypeError or KeyError for anything else."""
        found = json.loads(packed)
        ports = {key: tuple(int(port) for port in found[key]) for key in ("postgresql_ports", "mysql_ports")}
        return ReleaseSettings(**ports, mark=int(found["mark"]), flows_max=min(int(found["flows_max"]), FLOWS_MAX))
