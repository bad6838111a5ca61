# SPDX-License-Identifier: Apache-2.0
"""The replica's machine: standby domain, disk images and applier of one session, built and taken down together."""

from __future__ import annotations

import contextlib
import logging
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import libvirt

from remusdb.config import AgentConfig
from remusdb.core.messages import Hello
from remusdb.errors import CannotProtect, RemusError, VmError
from remusdb.net.announce import announce
from remusdb.vm.deadline import Deadline
from remusdb.vm.domain import connect, nics_of
from remusdb_agents.applier import Applier
from remusdb_agents.images import ReplicaImages
from remusdb_agents.inbox import WholeEpoch
from remusdb_agents.memory import require_memory
from remusdb_agents.rehearsal import Rehearsals
from remusdb_agents.standby_vm import StandbyVm
from remusdb_agents.standby_xml import QEMU_NS, standby_xml, survivor_xml

log = logging.getLogger(__name__)

CALL_S = 20.0  # starting a QEMU takes seconds


class Machine:
    """Everything that makes up one standby on this host."""

    def __init__(
        self,
        config: AgentConfig,
        hello: Hello,
        moved: Callable[[WholeEpoch], None],
        broken: Callable[[Exception], None],
    ) -> None:
        """Start it; on an error nothing is left behind."""
        require_memory(sum(block.size for block in hello.blocks), "the standby")
        self._undo = contextlib.ExitStack()
        try:
            self._build(config, hello, moved, broken)
        except BaseException:
            self._undo.close()
            raise

    def _build(
        self,
        config: AgentConfig,
        hello: Hello,
        moved: Callable[[WholeEpoch], None],
        broken: Callable[[Exception], None],
    ) -> None:
        deadline = Deadline(CALL_S)
        self._undo.callback(deadline.close)
        connection = connect(config.agent.libvirt_uri, deadline)
        reap_leftover(connection, deadline, hello.vm)
        self._folder: Path = config.agent.image_dir / hello.vm
        names = [disk.target for disk in hello.disks]
        self._images = ReplicaImages(self._folder, [disk.size for disk in hello.disks], names)
        self._undo.callback(self._images.remove)
        self._images.free_check(sum(disk.allocated for disk in hello.disks))
        images = dict(zip(names, self._images.paths, strict=True))
        bridges = config.network.bridges  # one that is not named keeps its name
        self._survivor_xml = survivor_xml(hello.domain_xml, images, bridges)
        xml = standby_xml(hello.domain_xml, images, bridges)
        self._standby = StandbyVm(connection, deadline, hello.vm, xml)
        self._undo.callback(self._standby.destroy)
        self._standby.match(hello.blocks)
        self.applier = Applier(self._standby, self._images, moved, broken)
        self.rehearsals = Rehearsals(config, hello, self._standby, self.applier, images)
        self._undo.callback(self.rehearsals.await_gone)
        self._undo.callback(self.applier.close)

    def wait_applied(self, timeout_s: float) -> bool:
        """Until every committed epoch is in the replica, or applying failed. False: time is up."""
        return self.applier.wait_empty(timeout_s)

    def resume(self) -> None:
        """Load the last epoch's device state and let the VM run. From here on this is the VM."""
        self.applier.close()
        self._undo.pop_all()
        folder = self._standby.domain.state_folder()
        self._standby.load(self.applier.devices, folder / "remusdb-load")
        self._standby.resume()

    def announce(self, addresses: list[str]) -> None:
        """Tell the network where the VM is now. A failure is logged: the guest's own traffic says it too."""
        try:
            nics = nics_of(self._standby.domain.tree)
            for nic in nics:  # with several, nobody here knows whose address is whose: the MACs alone
                announce(nic.tap, nic.mac, tuple(addresses) if len(nics) == 1 else ())
            self._standby.announce()
            self._standby.persist(self._survivor_xml)
        except RemusError as exc:
            log.warning("announcement: %s", exc)

    def close(self) -> None:
        """Take the standby and its images away."""
        self._undo.close()


def reap_leftover(connection: libvirt.virConnect, deadline: Deadline, name: str) -> None:
    """Destroy a standby that an agent which died left behind; CannotProtect for any other domain of that name."""
    try:
        handle = deadline.call(f"VM {name}", connection.lookupByName, name)
        if not deadline.call(f"VM {name}", handle.isActive):
            return
        tree = ET.fromstring(deadline.call(f"VM {name}", handle.XMLDesc, 0))
        state, _ = deadline.call(f"VM {name}", handle.state)
    except VmError:
        return  # it is not there, or went just now
    words = [arg.get("value") for arg in tree.iterfind(f"./{{{QEMU_NS}}}commandline/{{{QEMU_NS}}}arg")]
    if "-incoming" not in words or state != libvirt.VIR_DOMAIN_PAUSED:
        raise CannotProtect(
            f"a domain named {name} already runs on the backup host", hint="is the VM already running there?"
        )
    deadline.call(f"destroy leftover standby {name}", handle.destroy)
