# SPDX-License-Identifier: Apache-2.0
"""What a protected VM needs on its primary host, built in order and taken down in the opposite one."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from remusdb.capture.clock import GuestClock
from remusdb.capture.cut import Capture
from remusdb.capture.fifo import StateFifo
from remusdb.capture.pauses import PauseMeter, start_event_loop
from remusdb.capture.tracker import Tracker
from remusdb.core.messages import Disk
from remusdb.disk.mirror import DiskSpec, Mirror, disks_of
from remusdb.disk.writelog import WriteLog
from remusdb.errors import DevicesChanged, RemusError
from remusdb.net.factory import GateGroup, make_gate, plug_works
from remusdb.safefiles import make_folder
from remusdb.vm.autostart import has_autostart
from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.domain import PAGE_KIB, Domain
from remusdb.vm.endwatch import EndWatch
from remusdb.vm.libvirt_link import LibvirtLink
from remusdb.worker.devicewatch import DeviceWatch
from remusdb.worker.disk_reads import DiskReads
from remusdb.worker.encoder import Encoder
from remusdb.worker.spec import ProtectionSpec, release_settings
from remusdb.worker.tapwatch import open_taps

log = logging.getLogger(__name__)


class Resources:
    """What protection adds to a VM. `close` leaves the VM as it was found, whatever was built so far."""

    def __init__(self, spec: ProtectionSpec) -> None:
        self.spec = spec
        self._undo = contextlib.ExitStack()
        self.devices: DeviceWatch | None = None
        self.end: EndWatch | None = None
        self.calls = BlockingCalls(spec.protection.vm_call_timeout_ms / 1000)
        self._undo.callback(self.calls.close)
        start_event_loop()
        try:
            self.link = LibvirtLink(spec.libvirt_uri, self.calls)
            self._undo.callback(self.link.close)
            self.domain = Domain(self.link.connection, spec.vm, self.calls)
            self._undo.callback(self.domain.close)
            self.link.on_renewed(self.domain.reconnect)
            self.qemu_version = str(self.calls.call("QEMU's version", self.link.connection.getVersion))
            self.disks: list[DiskSpec] = self.calls.call("disks", disks_of, self.domain.handle)
            self.replicas = [self._replica(disk) for disk in self.disks if disk.mirrored]
            tracked = spec.protection.disk_read_tracking
            self.reads = DiskReads([disk.size for disk in self.replicas]) if tracked else None
            self.autostart: bool = self.calls.call("autostart", has_autostart, self.domain.handle)
            self.blocks = self.domain.blocks()
            self.clock = GuestClock(self.domain.pid, self.blocks, kvm=self.domain.accel == "kvm")
            nics = self.domain.nics
            held = spec.protection.held_max_bytes
            self.gate_kind = spec.protection.gate
            self.release = release_settings(spec.protection, len(nics))
            self.bell_fd: int | None = None
            if self.release is not None:
                self.gate_kind = "tap"
                self.bell_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._undo.callback(os.close, self.bell_fd)
            if self.gate_kind == "auto":
                self.gate_kind = "plug" if plug_works() else "tap"
            window = spec.protection.window
            self.gates = GateGroup(
                [
                    make_gate(
                        self.gate_kind,
                        nic.tap,
                        held,
                        guest_mac=nic.mac,
                        window=window,
                        release=self.release,
                        bell_fd=self.bell_fd,
                    )
                    for nic in nics
                ]
            )
        except BaseException:
            self._undo.close()
            raise

    def _replica(self, disk: DiskSpec) -> Disk:
        """What the agent must know of a disk."""
        info = self.calls.call(f"disk {disk.target}", self.domain.handle.blockInfo, disk.target)
        return Disk(disk.target, disk.capacity_bytes, int(info[1]))

    def build(self) -> None:
        """Start capture and the disks' write logs. Gates come later, once the copy is nearly done."""
        folder = self.spec.folder
        make_folder(folder)  # QEMU connects to sockets in it
        owner = Path(f"/proc/{self.domain.pid}").stat()
        self.end = EndWatch(self.link.connection, self.domain)
        self._undo.callback(self.end.close)
        self.link.on_renewed(self.end.renew)
        kvm = self.domain.accel == "kvm"
        # Under TCG a fault costs little. A huge page is protected as a whole, or not at all.
        hot_pages = self.spec.protection.hot_pages and kvm and self.domain.page_kib == PAGE_KIB
        self.tracker = Tracker(self.domain.pid, self.blocks, kvm=kvm, hot_pages=hot_pages)
        self._undo.callback(self.tracker.close)
        fifo = StateFifo(self.domain.state_folder(), owner.st_uid, owner.st_gid)
        self._undo.callback(fifo.close)
        self.patience_s = self.spec.protection.libvirt_patience_ms / 1000
        self.capture = Capture(self.domain, self.tracker, fifo, self.link, self.clock, self.patience_s)
        self._undo.callback(self.capture.close)
        self.clock.learn(self.capture.device_state)
        protection = self.spec.protection
        self.encoder = Encoder(self.blocks, protection.encoding, protection.delta_cache_percent, self.reads)
        self.logs: list[WriteLog] = []
        self.mirrors: list[Mirror] = []
        for index, disk in enumerate(d for d in self.disks if d.mirrored):
            writes = WriteLog(folder, index, disk.capacity_bytes, uid=owner.st_uid, gid=owner.st_gid)
            mirror = Mirror(self.domain.handle, disk.target, writes.nbd_socket, "")
            self.logs.append(writes)
            self.mirrors.append(mirror)
            self._undo.callback(writes.close)
            self._undo.callback(self._stop_mirror, mirror)
            self._undo.callback(writes.discard)  # first: a mirror whose log is full does not stop
            self.link.on_renewed(lambda _connection, mirror=mirror: mirror.renew(self.domain.handle))  # type: ignore[misc]

    def measure_pauses(self, note: Callable[[float], None]) -> None:
        """Have every pause of the VM told to `note`, in ms."""
        meter = PauseMeter(self.link.connection, self.domain, note)
        self._undo.callback(meter.close)
        self.link.on_renewed(meter.renew)

    def copy_speed(self, bytes_s: int) -> None:
        """Bound the initial sync of every disk; 0 is no bound."""
        for mirror in self.mirrors:
            self.calls.call(f"speed of the copy of {mirror.target}", mirror.set_speed, bytes_s)

    def watch_devices(self, changed: Callable[[DevicesChanged], None]) -> None:
        """Have `changed` told when the VM's devices are no more those that the agent was told of."""
        self.devices = DeviceWatch(self.domain, self.blocks, changed)
        self.devices.start(self.link)

    def close(self, *, remove_gates: bool) -> None:
        """Take everything down. With `remove_gates`, held output goes out and the network is as found."""
        if self.devices is not None:
            self.devices.close()  # first: it would shut again what is opened now
        if remove_gates:
            self._undo.callback(self._remove_gates)
        self._undo.close()

    def _remove_gates(self) -> None:
        with contextlib.suppress(RemusError):
            self.gates.open_all()  # a gate whose process died has nothing left to let go
        try:
            self.gates.remove()
        except RemusError as exc:
            log.error("gate not removed: %s", exc)
        open_taps(self.domain.pid)

    def _stop_mirror(self, mirror: Mirror) -> None:
        try:
            self.calls.call(f"end block copy of {mirror.target}", mirror.stop)
        except RemusError as exc:
            log.warning("block copy of %s not ended: %s", mirror.target, exc)
