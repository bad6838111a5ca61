# SPDX-License-Identifier: Apache-2.0
"""The copy of a replica that a rehearsal runs: a domain, overlays over the replica's images, an island to speak in.

Owns all of it, and throws it away. Invariant: nothing of the replica is written, and nothing of the copy is seen by
anybody else. What an agent that was killed left behind is found by name and marker, and removed by `sweep`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import libvirt

from remusdb.config import AgentConfig
from remusdb.core.messages import Hello
from remusdb.errors import DiskError, RemusError, VmError
from remusdb.names import file_stem
from remusdb.net.island import Island
from remusdb.safefiles import make_folder
from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.domain import Domain, connect
from remusdb_agents.backup.catch_up import CatchUp
from remusdb_agents.backup.rehearsal.xml import MARKER_NS, SERIAL_FILE, SUFFIX, rehearsal_xml
from remusdb_agents.backup.standby.borrowed_memory import BorrowedMemory
from remusdb_agents.backup.standby.nvram import FILE as NVRAM_FILE
from remusdb_agents.backup.standby.nvram import Nvram, flash_bytes
from remusdb_agents.backup.standby.qemu import StandbyQemu, announce_self

log = logging.getLogger(__name__)

CALL_S = 20.0
SWEEP_S = 5.0  # a daemon that starts does not wait longer for libvirt
FOLDER = "rehearsal"  # beside the replica's images


class Copy:
    """One copy, from its start to its end."""

    def __init__(self, config: AgentConfig, hello: Hello, images: Mapping[str, Path]) -> None:
        """Start it paused and empty; on an error nothing is left behind. `images`: the replica's, by target."""
        self._undo = contextlib.ExitStack()
        try:
            self._build(config, hello, images)
        except BaseException:
            self._undo.close()
            raise

    def _build(self, config: AgentConfig, hello: Hello, images: Mapping[str, Path]) -> None:
        self.folder = config.agent.image_dir / file_stem(hello.vm) / FOLDER
        calls = BlockingCalls(CALL_S)
        self._undo.callback(calls.close)
        connection = connect(config.agent.libvirt_uri, calls)
        name = hello.vm + SUFFIX
        reap(connection, calls, name)
        remove_folder(self.folder)
        self._undo.callback(remove_folder, self.folder)
        overlays = {target: self.folder / f"{target}.qcow2" for target in images}
        make_folder(self.folder)
        for disk in hello.disks:
            make_overlay(overlays[disk.target], images[disk.target], disk.size)
        if variables := flash_bytes(hello.domain_xml, hello.blocks):
            Nvram(self.folder / NVRAM_FILE, variables).close()
        prefix = f"rdbr{os.urandom(3).hex()}-"
        xml = rehearsal_xml(hello.domain_xml, overlays, uuid=str(uuid.uuid4()), tap_prefix=prefix, folder=self.folder)
        self._undo.callback(reap, connection, calls, name)  # also when it started and then something failed
        self._vm = StandbyQemu(connection, calls, name, xml)
        self._undo.callback(self.domain.close)
        self._undo.callback(self._destroy, connection, calls)
        self._island(prefix)
        self._require_no_lock(overlays)
        self._vm.match(hello.blocks)

    def _destroy(self, connection: libvirt.virConnect, calls: BlockingCalls) -> None:
        """By libvirt, or without it when that hangs."""
        reap(connection, calls, self._vm.name)
        self.domain.kill()

    def _island(self, prefix: str) -> None:
        """Before the copy has run: from here on the host has no link of it."""
        self.island = Island()
        self._undo.callback(self.island.close)
        self.taps: dict[str, str] = {}
        for interface in self.domain.tree.iterfind("./devices/interface"):
            target, mac = interface.find("target"), interface.find("mac")
            if target is None or mac is None or not target.get("dev", "").startswith(prefix):
                raise VmError("an interface of the copy is not where it was put: it is not run")
            self.taps[target.get("dev", "")] = mac.get("address", "")
        self.island.adopt(self.taps)

    def _require_no_lock(self, overlays: Mapping[str, Path]) -> None:
        """QEMU must share the replica's images with a writer: the standby, when it is resumed."""
        for disk in self.domain.tree.iterfind("./devices/disk"):
            target, alias = disk.find("target"), disk.find("alias")
            if target is None or alias is None or target.get("dev") not in overlays:
                continue
            path = f"/machine/peripheral/{alias.get('name')}"
            if not self.domain.qmp("qom-get", path=path, property="share-rw"):
                raise VmError(f"disk {target.get('dev')} of the copy would lock the replica's image: it is not run")

    @property
    def domain(self) -> Domain:
        """The copy's domain."""
        return self._vm.domain

    @property
    def serial(self) -> Path | None:
        """Where the copy's first serial port prints to, if it has one."""
        return self.folder / SERIAL_FILE if self.domain.tree.find("./devices/serial") is not None else None

    def fill(self, standby: StandbyQemu, told: Callable[[int], None]) -> None:
        """Take over a standby's memory; see StandbyQemu.copy_memory."""
        self._vm.copy_memory(standby, told)

    def resume(self, devices: bytes, catch_up: CatchUp) -> float:
        """Load the device state, its clocks as of now, and let it run; how long that took, in ms."""
        began = time.monotonic()
        self._vm.load(devices, catch_up)
        self._vm.resume()
        took_ms = (time.monotonic() - began) * 1000
        with contextlib.suppress(VmError):  # it may be down again already: the checks will tell
            announce_self(self._vm.domain)  # so that the guest shows its addresses, in the island alone
        return took_ms

    def borrow(self, standby: StandbyQemu) -> BorrowedMemory:
        """See a standby's memory without copying it; see StandbyQemu.borrow_memory."""
        return self._vm.borrow_memory(standby)

    def load(self, devices: bytes, catch_up: CatchUp) -> None:
        """Load the device state, as a takeover would now, and stay paused. StateRefused when QEMU does not take it."""
        self._vm.load(devices, catch_up, stay=True)

    def close(self) -> None:
        """Throw it away. Idempotent."""
        self._undo.close()


def make_overlay(overlay: Path, image: Path, size: int) -> None:
    """A qcow2 file over a raw image that is not even opened for it; DiskError when that fails."""
    command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", str(image), str(overlay), str(size)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise DiskError(f"no overlay can be made: {exc}", hint="install qemu-utils") from exc
    if done.returncode:
        raise DiskError(f"no overlay can be made: {done.stderr.strip()}")


def reap(connection: libvirt.virConnect, calls: BlockingCalls, name: str) -> None:
    """Destroy the rehearsal of that name. Any other domain stays; quiet when there is none."""
    with contextlib.suppress(VmError):
        handle = calls.call(f"VM {name}", connection.lookupByName, name)
        kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
        calls.call(f"VM {name}", handle.metadata, kind, MARKER_NS, 0)
        calls.call(f"destroy {name}", handle.destroy)


def remove_folder(folder: Path) -> None:
    """The rehearsal's folder, and the VM's if nothing else is in it."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def sweep(config: AgentConfig) -> None:
    """Remove what rehearsals of an agent that was killed left. Trouble is logged: the next rehearsal tries again."""
    calls = BlockingCalls(SWEEP_S, threads=1)
    try:
        connection = connect(config.agent.libvirt_uri, calls)
        for handle in calls.call("list of VMs", connection.listAllDomains):
            if (name := str(handle.name())).endswith(SUFFIX):
                reap(connection, calls, name)
    except RemusError as exc:
        log.warning("leftovers of rehearsals are not looked for: %s", exc)
    finally:
        calls.close()
    for folder in config.agent.image_dir.glob(f"*/{FOLDER}"):
        remove_folder(folder)
