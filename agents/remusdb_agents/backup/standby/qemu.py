# SPDX-License-Identifier: Apache-2.0
"""The warm standby: a paused libvirt domain that waits for a migration stream, its memory written from outside.

A QEMU that waits for an incoming migration loads no ROMs: every RAM block comes from the primary. At promotion
it is fed a stream of device state alone; what a save of device state omits (the configuration section) is added.
`xen-load-devices-state` must not be used: it asserts and kills QEMU (7.2, 10.0 and 11.1, measured).
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import libvirt
import numpy as np
from numpy.typing import NDArray

from remusdb.capture.clock_search import Timers
from remusdb.capture.memory import ProcessMemory
from remusdb.core.messages import RamBlock
from remusdb.core.pages import PagesDecoded, resolve
from remusdb.deadline import Deadline
from remusdb.errors import BadFrame, CannotProtect, LibvirtAway, VmError
from remusdb.printable import printable
from remusdb.safefiles import connect, folder_of, remove
from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.domain import Domain
from remusdb.vm.ramblocks import PAGE_BYTES, Block
from remusdb_agents.backup.catch_up import CatchUp, CaughtUp
from remusdb_agents.backup.standby.borrowed_memory import BorrowedMemory
from remusdb_agents.backup.standby.qemu_log import QemuLog

LOAD_SOCKET = "remusdb-load"  # in libvirt's folder of the domain, which QEMU's user may write
CONFIGURATION_SECTION = 0x07  # migration/qemu-file-types.h QEMU_VM_CONFIGURATION
FILE_HEADER_BYTES = 8  # magic and version
VMDESCRIPTION = b"\x06" + struct.pack(">I", 2) + b"{}"  # QEMU waits for one after the devices
SMALL_BLOCK_BYTES = 64 << 20  # blocks up to this size are blanked: the copy counts on a replica of zeros
STEP_PAGES = 4096
LOAD_S = 20.0
Follow = Callable[[NDArray[np.int64], NDArray[np.uint8]], None]
DESTROY_S = 5.0
POLL_S = 0.002
START_S = 45.0  # for libvirt on a busy host; the copy alone waits for it, and the primary 60 s for WELCOME
END_S = 0.25  # a QEMU that refuses a state says so and exits


class StateRefused(VmError):
    """QEMU read the device state and does not take it; the message has its own words."""


def device_stream(devices: bytes, machine: str) -> bytes:
    """A migration stream from the file that `xen-save-devices-state` wrote."""
    name = machine.encode()
    section = bytes([CONFIGURATION_SECTION]) + struct.pack(">I", len(name)) + name
    return devices[:FILE_HEADER_BYTES] + section + devices[FILE_HEADER_BYTES:] + VMDESCRIPTION


def announce_self(domain: Domain) -> None:
    """Have QEMU announce the VM's MAC addresses, and the guest (virtio-net) its own IP addresses."""
    domain.qmp("announce-self", initial=50, max=1000, rounds=6, step=150)


class StandbyQemu:
    """One standby domain on this host. After its start libvirt is needed only where QEMU has no private monitor."""

    def __init__(self, connection: libvirt.virConnect, calls: BlockingCalls, name: str, xml: str) -> None:
        """Start it paused; VmError when libvirt or QEMU refuses the XML."""
        self._calls = calls
        self.name = name
        start = calls.start(connection.createXML, xml, libvirt.VIR_DOMAIN_START_PAUSED)
        handle = calls.finish(start, f"start standby {name}", START_S)
        self._handle: libvirt.virDomain = handle
        try:
            self.domain = Domain(connection, name, calls)
            self._folder: Path = self.domain.state_folder()
            self._memory = ProcessMemory(self.domain.pid)
        except BaseException:  # no paused domain stays behind
            with contextlib.suppress(VmError):
                calls.call(f"destroy standby {name}", handle.destroy)
            raise
        self._blocks: list[Block] = []
        self._caught_up = CaughtUp(b"")
        self._timers = Timers(self.domain.pid)
        self._followed: dict[str, Follow] = {}

    def match(self, wanted: Sequence[RamBlock]) -> None:
        """Put the blocks into the primary's order; CannotProtect when the machines differ. Blanks the small ones."""
        here = {block.name: block for block in self.domain.blocks()}
        for want in wanted:
            block = here.get(want.name)
            if block is None or block.size != want.size:
                found = "is not there" if block is None else f"has {block.size} bytes"
                raise CannotProtect(
                    f"RAM block {want.name} of {want.size} bytes {found} on the standby of {self.name}",
                    hint="both hosts need the same QEMU and firmware packages",
                )
            self._blocks.append(block)
            if block.size <= SMALL_BLOCK_BYTES:
                self._blank(block)
        more = sum(block.size for block in here.values()) - sum(want.size for want in wanted)
        if more > SMALL_BLOCK_BYTES:
            raise CannotProtect(f"the standby of {self.name} would have {more} bytes of memory more than the VM has")

    def apply(self, pages: PagesDecoded) -> None:
        """Move these pages to their new content; BadFrame when they are not of this machine."""
        if pages.block >= len(self._blocks):
            raise BadFrame(f"RAM block {pages.block} is not known")
        block = self._blocks[pages.block]
        pages.require_within(block.pages)
        if len(pages.numbers):
            old = self._memory.read(block.address, pages.numbers) if pages.encoding == "delta" else pages.data
            self._memory.write(block.address, pages.numbers, resolve(pages, old))
        for low in range(0, len(pages.zero), STEP_PAGES):
            part = pages.zero[low : low + STEP_PAGES]
            self._memory.write(block.address, part, np.zeros((len(part), PAGE_BYTES), dtype=np.uint8))
        if (told := self._followed.get(block.name)) is not None:
            changed = np.sort(np.concatenate((pages.numbers, pages.zero)))
            told(changed, self._memory.read(block.address, changed))

    def follow(self, block: str, told: Follow) -> None:
        """Tell every change of a small RAM block from now on: the pages' numbers, and what is in them now."""
        self._followed[block] = told

    def copy_memory(self, other: StandbyQemu, told: Callable[[int], None]) -> None:
        """Take over the memory of a standby that stands still. Both were matched with the same blocks.

        `told` gets the bytes that are done, and ends the copy when it raises.
        """
        done = 0
        for mine, its in zip(self._blocks, other._blocks, strict=True):
            for first in range(0, its.pages, STEP_PAGES):
                numbers = np.arange(first, min(first + STEP_PAGES, its.pages), dtype=np.int64)
                content = other._memory.read(its.address, numbers)
                used = content.view(np.uint64).any(axis=1)  # what is zero there is zero here, and takes no memory
                self._memory.write(mine.address, numbers[used], content[used])
                done += len(numbers) * PAGE_BYTES
                told(done)

    def borrow_memory(self, other: StandbyQemu) -> BorrowedMemory:
        """See the memory of a standby that stands still, without a copy of all of it. Both were matched alike."""
        pairs = list(zip(self._blocks, other._blocks, strict=True))
        return BorrowedMemory(self.domain.pid, pairs, other._memory, SMALL_BLOCK_BYTES, lambda _exc: self.domain.kill())

    def load(self, devices: bytes, catch_up: CatchUp, *, stay: bool = False) -> None:
        """Feed the device state, its clocks as of now: QEMU then is the machine of that epoch, still paused.

        StateRefused when QEMU does not take it, VmError when it did not come to that. With `stay` a QEMU >= 9.1 that
        refuses it does not end, and so tells more.
        """
        said = QemuLog(self.name)
        try:
            self._load(devices, catch_up, stay)
        except LibvirtAway:
            raise
        except VmError as exc:
            refused = isinstance(exc, StateRefused)
            words = said.words() if refused or self.domain.ends_within(END_S) else ""
            if not words and not refused:
                raise
            raise StateRefused(f"QEMU refuses the device state: {words}" if words else str(exc)) from exc

    def _load(self, devices: bytes, catch_up: CatchUp, stay: bool) -> None:
        self._await_stream(f"unix:{self._folder / LOAD_SOCKET}", stay)
        with socket.socket(socket.AF_UNIX) as sock, folder_of(self._folder) as folder:
            sock.settimeout(LOAD_S)
            try:
                connect(sock, folder, LOAD_SOCKET, self.domain.pid)
                self._caught_up = catch_up.apply(devices)
                sock.sendall(device_stream(self._caught_up.devices, self.domain.machine))
            except OSError as exc:
                raise VmError(f"standby {self.name} refuses its device state: {exc}") from exc
            self._await_load()
            with contextlib.suppress(OSError):
                remove(folder, LOAD_SOCKET)

    def _await_stream(self, uri: str, stay: bool) -> None:
        if stay:
            try:
                self.domain.qmp("migrate-incoming", uri=uri, **{"exit-on-error": False})
                return
            except VmError as exc:  # an older QEMU
                if "exit-on-error" not in str(exc):
                    raise
        self.domain.qmp("migrate-incoming", uri=uri)

    def resume(self) -> None:
        """Let the VM run. libvirt hears of it by QEMU's RESUME event, sooner or later."""
        self._caught_up.before_start(self._timers)
        self.domain.qmp("cont")
        self._caught_up.finish(self.domain.pid)

    def destroy(self) -> None:
        """End the standby. Quiet when it is gone already; where libvirt is away, QEMU is killed without it."""
        try:
            handle = self._calls.start(self._handle.destroy)
            self._calls.finish(handle, f"destroy standby {self.name}", DESTROY_S)
        except LibvirtAway:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.domain.pidfd, signal.SIGKILL)
            self.domain.ends_within(DESTROY_S)
        except VmError:
            return

    def _await_load(self) -> None:
        deadline = Deadline.after(LOAD_S)
        while not deadline.over:
            state = self.domain.qmp("query-migrate")
            status = state.get("status") if isinstance(state, dict) else None  # none yet: no load has begun
            if status == "completed":
                return
            if status == "failed":
                said = printable(str(state.get("error-desc", state)))
                raise StateRefused(f"QEMU refuses the device state: {said}")
            time.sleep(POLL_S)
        raise VmError(f"standby {self.name} did not load the device state within {LOAD_S:g} s")

    def _blank(self, block: Block) -> None:
        zeros = np.zeros((STEP_PAGES, PAGE_BYTES), dtype=np.uint8)
        for first in range(0, block.pages, STEP_PAGES):
            numbers = np.arange(first, min(first + STEP_PAGES, block.pages), dtype=np.int64)
            if self._memory.read(block.address, numbers).any():
                self._memory.write(block.address, numbers, zeros[: len(numbers)])
