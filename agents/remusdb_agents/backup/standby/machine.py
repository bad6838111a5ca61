# SPDX-License-Identifier: Apache-2.0
"""The replica's machine: standby domain, disk images and applier of one session, built and taken down together."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import libvirt

from remusdb import safexml
from remusdb.core.messages import Hello
from remusdb.deadline import Deadline, poll_until
from remusdb.errors import CannotProtect, LibvirtAway, RemusError, VmError
from remusdb.names import file_stem
from remusdb.net.announce import announce
from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.domain import Domain, connect, nics_of
from remusdb.vm.prepare import confined_without_rule, qmp_socket
from remusdb_agents.backup.applier import Applier
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.disks.base_copy import QuarantinedDisk
from remusdb_agents.backup.disks.block_hashes import Bases
from remusdb_agents.backup.disks.exports import Exports
from remusdb_agents.backup.disks.images import ReplicaImages
from remusdb_agents.backup.inbox import WholeEpoch
from remusdb_agents.backup.namesakes import is_standby
from remusdb_agents.backup.open_flows import OpenFlows
from remusdb_agents.backup.rehearsal.run import Rehearsals
from remusdb_agents.backup.standby.definition import Definition
from remusdb_agents.backup.standby.here import require_free_taps
from remusdb_agents.backup.standby.limits import ram_bytes
from remusdb_agents.backup.standby.nvram import FILE as NVRAM_FILE
from remusdb_agents.backup.standby.nvram import FLASH, Nvram, flash_bytes
from remusdb_agents.backup.standby.proof import Prover
from remusdb_agents.backup.standby.qemu import StandbyQemu, announce_self
from remusdb_agents.backup.standby.xml import standby_xml, survivor_xml

log = logging.getLogger(__name__)

CALL_S = 20.0  # starting a QEMU takes seconds
GONE_S = 5.0  # until libvirt has seen the end of a QEMU
COLD_PATIENCE_S = 120.0


class StandbyMachine:
    """Everything that makes up one standby on this host."""

    def __init__(
        self,
        context: Context,
        hello: Hello,
        moved: Callable[[WholeEpoch], None],
        broken: Callable[[Exception], None],
        quarantined: Mapping[str, QuarantinedDisk],
    ) -> None:
        """Start it; on an error nothing is left behind. `hello`: as `fitted` made it (here.py). `quarantined`:
        its disks here, by target."""
        self._undo = contextlib.ExitStack()
        self._keep_images = True
        promise = context.admission.admit(hello.vm, ram_bytes(hello))
        with self._undo:
            self._undo.callback(context.admission.release, hello.vm)
            config = context.config
            calls = BlockingCalls(CALL_S)
            self._undo.callback(calls.close)
            connection = connect(config.agent.libvirt_uri, calls)
            reap_leftover(connection, calls, hello.vm)
            self._uri, self._vm = config.agent.libvirt_uri, hello.vm
            self._folder: Path = config.agent.image_dir / file_stem(hello.vm)
            names = [disk.target for disk in hello.disks]
            devices = config.disks.get(hello.vm, {})
            self._images = self.images = ReplicaImages(
                self._folder, [disk.size for disk in hello.disks], names, devices
            )
            self._undo.callback(self._leave_images)
            self._images.free_check([disk.allocated for disk in hello.disks])
            by_index = {index: quarantined[name] for index, name in enumerate(names) if name in quarantined}
            self.bases = Bases(self._images, by_index, broken)
            self._undo.callback(self.bases.close)
            images = dict(zip(names, self._images.sources, strict=True))
            nvram = self._nvram = self._make_nvram(flash_bytes(hello.domain_xml, hello.blocks))
            variables = nvram.path if nvram is not None else None
            bridges = config.network.bridges  # one that is not named keeps its name
            confined = confined_without_rule(calls.call("libvirt", connection.getCapabilities))
            monitor = None if confined else qmp_socket(hello.uuid)
            survivor = survivor_xml(hello.domain_xml, images, bridges, monitor, variables)
            self._definition = Definition(self._uri, self._vm, survivor, hello.autostart)
            xml = standby_xml(hello.domain_xml, images, bridges, monitor, variables)
            require_free_taps(xml)
            self._standby = StandbyQemu(connection, calls, hello.vm, xml)
            self._undo.callback(self._standby.domain.close)
            self._undo.callback(self._standby.destroy)
            self._domain = self._standby.domain  # what is the VM, once promoted
            self._standby_id = self._domain.handle.ID()
            self._standby.match(hello.blocks)
            if nvram is not None:
                self._standby.follow(FLASH, nvram.write)
            most = context.config.limits.epoch_max_bytes
            self.applier = Applier(self._standby, self._images, moved, broken, most)
            paths = dict(zip(names, self._images.paths, strict=True))
            self.rehearsals = Rehearsals(context, hello, self._standby, self.applier, paths)
            self.prover = Prover(context, hello, self._standby, self.applier, paths, self.rehearsals)
            self.exports = Exports(hello, self._images, self.applier, self.rehearsals)
            self._undo.callback(self.rehearsals.await_gone)
            self._undo.callback(self.applier.close)
            promise.pid = self._domain.pid
            self._undo = self._undo.pop_all()  # whole: from here on `close` takes it down

    def _make_nvram(self, size: int) -> Nvram | None:
        """The file of a UEFI guest's variables. It goes when the session's images do."""
        if not size:
            return None
        nvram = Nvram(self._folder / NVRAM_FILE, size)
        self._undo.callback(lambda: nvram.close() if self._keep_images else nvram.remove())
        return nvram

    def wait_applied(self, timeout_s: float) -> bool:
        """Until every committed epoch is in the replica, or applying failed. False: time is up. For a takeover, so an
        export ends."""
        self._images.end_snapshot("this host takes the VM over")
        return self.applier.wait_empty(timeout_s)

    def resume(self, stays: bool) -> int:
        """Load the last epoch's device state and let the VM run: from here on this is the VM. RemusError: it does not.

        With `stays` it is left paused, for whoever suspended it to resume. Gives how many connections are reset, since
        they were inside a transaction (`release = "commit"`).
        """
        self.applier.close()
        self._undo.pop_all()
        self._images.close()  # the VM's from here on; a device that is held would be refused to the next session
        if self._nvram is not None:
            self._nvram.close()
        self._standby.load(self.applier.devices, self.applier.catch_up)
        flows = OpenFlows(nics_of(self._domain.tree), self.applier.open_flows)  # before the VM can say anything
        if not stays:
            self._standby.resume()
        flows.reset()
        self._definition.keep()
        return flows.count

    def cold_start(self, stays: bool) -> None:
        """Where `resume` failed: start the VM from the replica's disks, as after a power cut. VmError: no luck.

        All that the database had on its disks at the committed epoch is there; connections and memory are not.
        """
        self._standby.destroy()
        calls = BlockingCalls(CALL_S)
        deadline = Deadline.after(COLD_PATIENCE_S)
        while True:
            try:
                connection = connect(self._uri, calls)
                calls.call(f"start {self._vm}", self._start_cold, connection, stays)
                self._domain = Domain(connection, self._vm, calls)
                return
            except LibvirtAway as exc:
                if deadline.over:
                    raise
                log.warning("%s waits for libvirtd to be started: %s", self._vm, exc)
                time.sleep(1)

    def _start_cold(self, connection: libvirt.virConnect, stays: bool) -> None:
        handle = self._definition.define(connection)
        if handle.isActive() and handle.ID() != self._standby_id:
            return  # an earlier try, whose answer was lost
        poll_until(lambda: not handle.isActive(), Deadline.after(GONE_S), 0.05)
        handle.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if stays else 0)

    def announce(self, addresses: list[str]) -> None:
        """Tell the network where the VM is now. A failure is logged: the guest's own traffic says it too."""
        try:
            nics = nics_of(self._domain.tree)
            for nic in nics:  # with several, nobody here knows whose address is whose: the MACs alone
                announce(nic.tap, nic.mac, tuple(addresses) if len(nics) == 1 else ())
            announce_self(self._domain)
        except RemusError as exc:
            log.warning("announcement: %s", exc)
        self._domain.release_monitor()  # the next to protect the VM, from here, wants it

    def close(self, *, keep_images: bool) -> None:
        """Take the standby away. Its images stay as the next session's base with `keep_images`, else they go, too."""
        self._keep_images = keep_images
        self._undo.close()

    def _leave_images(self) -> None:
        if self._keep_images:
            self._images.keep()
        else:
            self._images.remove()


def remove_leftover(libvirt_uri: str, name: str) -> None:
    """Destroy the standby of an agent that died, if one is there. RemusError when libvirt does not do it."""
    calls = BlockingCalls(CALL_S)
    try:
        reap_leftover(connect(libvirt_uri, calls), calls, name)
    finally:
        calls.close()


def reap_leftover(connection: libvirt.virConnect, calls: BlockingCalls, name: str) -> None:
    """Destroy a standby that an agent which died left behind; CannotProtect for any other domain of that name."""
    try:
        handle = calls.call(f"VM {name}", connection.lookupByName, name)
        if not calls.call(f"VM {name}", handle.isActive):
            return
        tree = safexml.parse(calls.call(f"VM {name}", handle.XMLDesc, 0))
        state, _ = calls.call(f"VM {name}", handle.state)
    except VmError:
        return  # it is not there, or went just now
    if not is_standby(tree, state):
        raise CannotProtect(
            f"a domain named {name} already runs on the backup host", hint="is the VM already running there?"
        )
    calls.call(f"destroy leftover standby {name}", handle.destroy)
