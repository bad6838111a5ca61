# SPDX-License-Identifier: Apache-2.0
"""One moment in which a live VM stands still, drained, and what is done in it.

    monitor call ─▶ QEMU stops the VM, drains and flushes its disks, offers device state
                    │ first byte readable: the VM is stopped, no device read or write is in flight
                    ├─ work(), while QEMU goes on with its state as far as there is room for it
                    └─ the guest's clock is corrected, the state drained ─▶ QEMU starts the VM

The read end of the FIFO is closed in any case, so that QEMU goes on whatever fails. A VM that was paused stays so.

Until the first byte nothing is taken, so a libvirtd that hangs or is restarted costs time and nothing else: the call
that hangs may still go on, the one that died with its libvirtd is made again. Pages that were taken are never thrown
away: a failure after that ends protection.
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from remusdb.capture.clock import GuestClock
from remusdb.capture.fifo import Room, StateFifo, drain, held, wait_any, widen
from remusdb.errors import LibvirtAway, VmError
from remusdb.vm.domain import Domain
from remusdb.vm.libvirt_link import LibvirtLink

SAVE = "xen-save-devices-state"
LOOK_S = 0.1  # how often a call that hangs, or a libvirtd that is gone, is checked
TELL_S = 0.5  # a libvirt that is silent for less is not worth a word
CONFIRM_S = 0.2  # for the answer to a save whose state is here in whole
# What a whole state ends with: the footer of its last section (its number is the VM's own), then QEMU_VM_EOF.
SECTION_FOOTER, END_BYTES = 0x7E, 6  # migration/savevm.c QEMU_VM_SECTION_FOOTER

T = TypeVar("T")
Waiting = Callable[[float], None]  # told, again and again, for how many seconds nobody has answered; the VM runs


@dataclass(frozen=True)
class Stop(Generic[T]):
    """One stop of the VM: what was done in it, and what QEMU saved of its devices."""

    done: T
    devices: bytes
    at_ns: int | None  # time.monotonic_ns(); None if the VM did not run until then
    asked_ns: int = 0  # when QEMU was asked for it, and
    ended_ns: int = 0  # when its state was read: time.monotonic_ns()


@dataclass
class _Save:
    """The call that is under way for one stop: the save itself, or a question whether QEMU can be asked again."""

    call: Future[Any] | None
    saving: bool = True

    @property
    def answered(self) -> bool:
        """Whether QEMU has said how the save went: then it writes nothing more."""
        return self.saving and self.call is not None and self.call.done()


class Stops:
    """The stops of one domain. `at_stop` is for one thread at a time, `close` for any."""

    def __init__(
        self, domain: Domain, fifo: StateFifo, link: LibvirtLink, clock: GuestClock, patience_s: float
    ) -> None:
        """`patience_s`: how long one stop waits for a libvirt that is away."""
        self._domain = domain
        self._fifo = fifo
        self._link = link
        self._clock = clock
        self._patience_s = patience_s
        self._end = b""  # how a whole device state of this VM ends, once one was seen
        self._room = Room()
        self._busy = threading.Lock()  # held by a stop
        self._closing = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_lock = threading.Lock()  # a call that hung may end after `close`

    def at_stop(self, work: Callable[[], T], waiting: Waiting) -> Stop[T]:
        """Have QEMU stop the VM, do `work`, have it start again.

        VmError when QEMU or libvirt does not do its part; the VM runs on then.
        """
        with self._busy:
            if not self._fifo.guarded():
                raise VmError("the guard process of the state FIFO is gone")
            fd = self._fifo.open(self._room.bytes(self._clock.after_bytes))
            self._clock.begin()
            asked = time.monotonic_ns()
            save = _Save(self._begin(SAVE, filename=str(self._fifo.path), live=False))
            try:
                self._await_stop(fd, save, waiting)
                stopped_at = time.monotonic_ns()
                done = work()
                devices = self._drain(fd, stopped_at)
                ended = time.monotonic_ns()
            except BaseException:
                if not save.answered:
                    self._fifo.abandon()
                raise
            finally:
                os.close(fd)
            self._confirm(save, devices)
            self._room.saw(len(devices))
            return Stop(done, devices, self._clock.done(devices), asked, ended)

    def close(self) -> None:
        """Have a stop that waits give up, and release the descriptor; the FIFO belongs to the caller."""
        self._closing.set()
        self._wake_up()
        with self._busy, self._wake_lock:
            os.close(self._wake)
            self._wake = -1

    def _drain(self, fd: int, stopped_at: int) -> bytes:
        """The device state. The guest's clock is corrected as late as can be: what follows is lost to it for now."""
        timeout_s = self._domain.calls.timeout_s
        head = drain(fd, timeout_s, self._clock.after_bytes)
        self._clock.repair(stopped_at)
        if not held(fd):
            raise VmError("QEMU did not wait for this cut: its device state is less than half as long as any before")
        widen(fd)
        return head + drain(fd, timeout_s)

    def _await_stop(self, fd: int, save: _Save, waiting: Waiting) -> None:
        """Return at the first byte of device state: the VM is stopped. Calls that die with libvirtd are made again."""
        began = time.monotonic()
        while fd not in (ready := wait_any((fd, self._wake, self._domain.pidfd), LOOK_S)):
            away_s = time.monotonic() - began
            self._require_hope(ready, away_s)
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if save.call is not None and save.call.done():
                self._look_at_answer(save)
            elif save.call is None and self._link.there:
                save.call = self._begin("query-status")
            if away_s > TELL_S:
                waiting(away_s)

    def _require_hope(self, ready: set[int], away_s: float) -> None:
        if self._domain.pidfd in ready:
            raise VmError("QEMU has ended")
        if self._closing.is_set():
            raise VmError("the stop was called off")
        if away_s > self._patience_s:
            hung = LibvirtAway if self._domain.monitor == "libvirt" else VmError
            raise hung(
                f"{self._domain.monitor} monitor: no answer for {self._patience_s:g} s",
                hint=f"see whether libvirtd and QEMU answer: virsh domblklist {shlex.quote(self._domain.name)}",
            )

    def _look_at_answer(self, save: _Save) -> None:
        """What the ended call means for this stop. VmError when QEMU refused.

        After libvirtd died, its last words may still be on their way to QEMU. One that answers a question over the
        new connection has carried them out, or dropped them: only then the save may be asked for again.
        """
        assert save.call is not None
        try:
            self._domain.calls.finish(save.call, SAVE)
        except LibvirtAway:
            save.call, save.saving = None, False
            return
        if save.saving:
            raise VmError("QEMU saved its device state without writing any")
        save.call, save.saving = self._begin(SAVE, filename=str(self._fifo.path), live=False), True

    def _confirm(self, save: _Save, devices: bytes) -> None:
        """QEMU's word that the save went well; where libvirt keeps it from us, the state itself must tell."""
        if save.saving and save.call is not None:
            try:
                self._domain.calls.finish(save.call, SAVE, CONFIRM_S if self._end else self._patience_s)
                self._end = devices[-END_BYTES:] if devices[-END_BYTES] == SECTION_FOOTER else b""
                return
            except LibvirtAway:
                pass
        if not self._end or not devices.endswith(self._end):
            raise VmError("libvirtd died during a stop, and QEMU's device state is not whole")

    def _begin(self, command: str, **arguments: Any) -> Future[Any]:
        """Begin a monitor call. A save with `live=true` of a paused VM would inactivate its disks."""
        call = self._domain.calls.start(self._domain.qmp_blocking, command, **arguments)
        call.add_done_callback(lambda _done: self._wake_up())
        return call

    def _wake_up(self) -> None:
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
