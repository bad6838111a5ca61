# SPDX-License-Identifier: Apache-2.0
"""What commit protection is told of a VM: as JSON, it is what a gate's process is started with."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from remusdb.core.release.frames import FLOWS_MAX


class ReleaseSettings(msgspec.Struct, frozen=True):
    """Ports of the VM where it speaks PostgreSQL's or MySQL's protocol, and the DSCP value by which it marks; 0: none.

    `flows_max`: so many connections are known at most; what more there are waits as with `release = "all"`.
    """

    postgresql_ports: tuple[int, ...] = ()
    mysql_ports: tuple[int, ...] = ()
    mark: Annotated[int, Meta(ge=0, le=63)] = 0
    flows_max: Annotated[int, Meta(ge=1, le=FLOWS_MAX)] = FLOWS_MAX
