# SPDX-License-Identifier: Apache-2.0
"""The HELLO of one VM: what its agent must know to keep a standby of it."""

from __future__ import annotations

from collections.abc import Sequence

from remusdb import __version__
from remusdb.arbiter.arbiter import Arbiter
from remusdb.core.messages import Hello, RamBlock
from remusdb.core.pipeline import Pipeline
from remusdb.names import require_name
from remusdb.state import VmState
from remusdb.worker.resources import Resources
from remusdb.worker.spec import ProtectionSpec


class HelloWriter:
    """Of one session."""

    def __init__(self, spec: ProtectionSpec, pipeline: Pipeline, arbiter: Arbiter | None) -> None:
        self._spec = spec
        self._pipeline = pipeline
        self._arbiter = arbiter

    def write(self, resources: Resources, state: VmState, *, resume: bool, told: Sequence[int] = ()) -> Hello:
        """To begin a session, or to `resume` this one, in whose initial sync the agent `told` so many hashes a disk."""
        domain = resources.domain
        return Hello(
            version=__version__,
            primary=self._spec.host,
            vm=require_name(domain.name),
            uuid=domain.uuid,
            term=self._pipeline.term,
            resume=resume,
            epoch=self._pipeline.captured,
            machine=domain.machine,
            domain_xml=domain.xml,
            blocks=[RamBlock(block.name, block.size) for block in resources.blocks],
            disks=resources.replicas,
            heartbeat_ms=self._spec.protection.heartbeat_ms,
            qemu_version=resources.qemu_version,
            arbiter=self._arbiter.cluster() if self._arbiter and not resume else "",
            told=list(told),
            autostart=state.autostart or resources.autostart,
        )
