# SPDX-License-Identifier: Apache-2.0
"""One running libvirt domain as remusdb sees it: its QEMU process, monitor, RAM blocks and devices."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt

from remusdb import safexml
from remusdb.deadline import Deadline
from remusdb.errors import LibvirtAway, VmError
from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.monitor import LibvirtMonitor, Monitor
from remusdb.vm.process import RUN_FOLDER, domain_folder, qemu_pid
from remusdb.vm.qmp import private_monitor
from remusdb.vm.ramblocks import Block, parse_ramblocks

LOOK_S = 0.1  # how often a libvirt that is away is checked
STATE_LOOK_S = 0.02
EXIT_CODE_FIELD = 49  # of /proc/PID/stat, counted from the state on
SHUTOFF_S = 0.3  # less than the shortest sensible failover.silence_ms
PAGE_KIB, HUGE_KIB = 4, 2048  # x86's pages, and its default huge ones
UNIT_KIB = {"KiB": 1, "MiB": 1 << 10, "GiB": 1 << 20}  # as libvirt writes them in a live XML: KiB


@dataclass(frozen=True)
class Nic:
    """One bridged interface of the VM: its tap on this host, the bridge it is on, and its MAC address."""

    tap: str
    bridge: str
    mac: str


class Domain:
    """A running domain. All libvirt calls are made by `calls`; `handle` is of the present connection."""

    def __init__(self, connection: libvirt.virConnect, name: str, calls: BlockingCalls) -> None:
        self.name = name
        self.calls = calls
        self.handle: libvirt.virDomain = calls.call(f"VM {name}", connection.lookupByName, name)
        if not calls.call(f"VM {name}", self.handle.isActive):
            raise VmError(f"VM {name} is not running", hint=f"start it: virsh start {name}")
        self.uuid: str = self.handle.UUIDString()
        self.xml = calls.call(f"VM {name}", self.handle.XMLDesc, libvirt.VIR_DOMAIN_XML_SECURE)
        self.tree = safexml.parse(self.xml)
        self.pid = pid_of(name)
        self.pidfd = os.pidfd_open(self.pid)  # readable once QEMU has ended
        self._private = private_monitor(self.pid)

    def reconnect(self, connection: libvirt.virConnect) -> None:
        """Use this connection from now on. Blocks as libvirt does; libvirtError when it does not know the VM."""
        self.handle = connection.lookupByName(self.name)

    def close(self) -> None:
        """Let go of the process's descriptor and of its private monitor. Once."""
        os.close(self.pidfd)
        self.release_monitor()

    def release_monitor(self) -> None:
        """Leave the private monitor to somebody else: QEMU serves one at a time. From here on libvirt's is used."""
        private, self._private = self._private, None
        if private is not None:
            private.close()

    @property
    def monitor(self) -> str:
        """The way to QEMU that is in use: 'private' or 'libvirt'."""
        return "libvirt" if self._private is None else "private"

    @property
    def machine(self) -> str:
        """The machine type as QEMU knows it, alias resolved (`pc-q35-10.0`)."""
        kind = self.tree.find("./os/type")
        return kind.get("machine", "") if kind is not None else ""

    @property
    def accel(self) -> str:
        """'kvm' or 'tcg'."""
        return "kvm" if self.tree.get("type") == "kvm" else "tcg"

    @property
    def page_kib(self) -> int:
        """The size of the pages under the guest's memory: all of one counts as written when the guest writes to it."""
        page = self.tree.find("./memoryBacking/hugepages/page")
        if self.tree.find("./memoryBacking/hugepages") is None:
            return PAGE_KIB
        unit = UNIT_KIB.get(page.get("unit", "KiB"), 1) if page is not None else 1
        return int(page.get("size", HUGE_KIB)) * unit if page is not None else HUGE_KIB

    @property
    def nics(self) -> list[Nic]:
        """The interfaces that stand on a bridge of this host."""
        return nics_of(self.tree)

    def qmp(self, command: str, **arguments: Any) -> Any:
        """One QMP command, on the private socket or through libvirt's monitor; its return value."""
        return self.calls.call(f"{command} on {self.name}", self.qmp_blocking, command, **arguments)

    def qmp_blocking(self, command: str, **arguments: Any) -> Any:
        """Like `qmp`, in the caller's thread and without a limit."""
        monitor: Monitor = self._private or LibvirtMonitor(self.handle)
        return monitor.execute(command, arguments)

    def qmp_begun(self, command: str) -> Future[Any]:
        """Begin a monitor command; `qmp_patiently` takes its answer. NoThread."""
        return self.calls.start(self.qmp_blocking, command)

    def qmp_patiently(self, command: str, begun: Future[Any], patience_s: float, given_up: Callable[[], bool]) -> Any:
        """The answer; LibvirtAway only after so long: a libvirtd that hangs may go on, one that died may come back."""
        what, deadline = f"{command} on {self.name}", Deadline.after(patience_s)
        call = begun
        while True:
            try:
                return self.calls.finish(call, what, LOOK_S)
            except LibvirtAway:
                if deadline.over or given_up() or not self.alive():
                    raise
            if call.done():
                time.sleep(LOOK_S)
                call = self.qmp_begun(command)

    def blocks(self) -> list[Block]:
        """The RAM blocks of QEMU."""
        text = self.qmp("human-monitor-command", **{"command-line": "info ramblock"})
        return parse_ramblocks(text)

    def alive(self) -> bool:
        """Whether QEMU's process is there. A truth of the kernel, not of libvirt."""
        return not self.ends_within(0)

    def ends_within(self, seconds: float) -> bool:
        """Whether QEMU has ended or ends within so long: a process that was killed takes a while to go."""
        return bool(select.select([self.pidfd], [], [], seconds)[0])

    def kill(self) -> None:
        """End QEMU by force, for a domain that nobody will miss. Quiet when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def exited_well(self) -> bool | None:
        """After QEMU's end: whether it ended by itself, or by a signal that it heeds. None once it was reaped."""
        status = _exit_status(self.pid)
        return None if status is None else status == 0

    def was_shut_down(self) -> bool:
        """After QEMU's end: whether somebody wanted the VM off (its guest, `virsh`), as its exit or libvirt tells it.

        libvirt speaks only when QEMU's pid is gone. Until somebody has reaped it, the process itself tells: QEMU exits
        with 0 when its guest, `virsh` or a SIGTERM ended it, and with something else when it was killed or crashed.
        False also when neither tells within SHUTOFF_S: a VM that may have crashed must be taken over.
        """
        deadline = Deadline.after(SHUTOFF_S)
        wanted = (libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN, libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED)
        asked = self.calls.start(self.handle.state)
        while not deadline.over:
            status = _exit_status(self.pid)
            if status is not None and not os.WIFSIGNALED(status):
                return status == 0
            with contextlib.suppress(VmError):
                state, reason = self.calls.finish(asked, f"state of {self.name}", STATE_LOOK_S)
                if state == libvirt.VIR_DOMAIN_SHUTOFF:
                    return reason in wanted
            if asked.done():
                time.sleep(STATE_LOOK_S)
                asked = self.calls.start(self.handle.state)
        return False

    def state_folder(self) -> Path:
        """The folder libvirt keeps for this run of the domain: QEMU may open files there under any confinement."""
        found = domain_folder(self.name)
        if found is None:
            raise VmError(f"{RUN_FOLDER} does not say which folder libvirt keeps for {self.name}")
        return found


def nics_of(tree: ET.Element) -> list[Nic]:
    """The bridged interfaces in a live domain XML."""
    nics = []
    for interface in tree.iterfind("./devices/interface"):
        source, target, mac = interface.find("source"), interface.find("target"), interface.find("mac")
        if source is not None and target is not None and mac is not None and source.get("bridge"):
            nics.append(Nic(target.get("dev", ""), source.get("bridge", ""), mac.get("address", "")))
    return nics


def pid_of(name: str) -> int:
    """QEMU's, of a running domain. VmError when it is not to be found."""
    pid = qemu_pid(name)
    if pid is None:
        raise VmError(f"the QEMU process of VM {name} is not to be found by {RUN_FOLDER}")
    return pid


def _exit_status(pid: int) -> int | None:
    """How a process ended, as `wait` has it, while it is still to be reaped: None once it is not, or if it lives."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name before may hold spaces
    except OSError:
        return None
    return int(fields[EXIT_CODE_FIELD]) if fields[0] == "Z" else None


def connect(uri: str, calls: BlockingCalls) -> libvirt.virConnect:
    """A connection to libvirt; its default error printing is silenced."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    try:
        return calls.call(f"libvirt at {uri}", libvirt.open, uri)
    except VmError as exc:
        raise LibvirtAway(str(exc), hint="is libvirtd running on this host?") from exc
