# SPDX-License-Identifier: Apache-2.0
"""The second way to put kvmclock right: KVM's own calls, made inside QEMU, which alone may make them (EIO for others).

QEMU's main thread is held for 0.05 to 0.4 ms while the VM runs. What is set lasts because QEMU reads the clock again
at the next stop.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable

from remusdb.capture.inject import call, stack_pointer, stopped, syscall_instruction
from remusdb.capture.kernel import SYS_IOCTL
from remusdb.core.clock_repair import Anchor
from remusdb.errors import VmError

KVM_GET_CLOCK, KVM_SET_CLOCK = 0x8030AE7C, 0x4030AE7B  # linux/kvm.h
CLOCK_DATA = struct.Struct("<QIIQQ16x")  # struct kvm_clock_data; flags 0: `clock` is the time now
BELOW_STACK_BYTES = 8192  # far below the red zone; the thread's signals are blocked meanwhile
EVERY_NS = 1_000_000_000
VM_FD = "anon_inode:kvm-vm"


class KvmClock:
    """kvmclock of the VM that a QEMU process runs."""

    def __init__(self, pid: int) -> None:
        """VmError when the process has no KVM VM."""
        self._pid = pid
        try:
            fds = [int(fd) for fd in os.listdir(f"/proc/{pid}/fd") if _link(pid, fd) == VM_FD]
            if len(fds) != 1:
                raise VmError(f"QEMU (pid {pid}) has {len(fds)} KVM VMs open")
            self._fd = fds[0]
            self._instruction = syscall_instruction(pid)
        except OSError as exc:
            raise VmError(f"QEMU (pid {pid}) cannot be looked at: {exc}") from exc

    def move(self, wanted: Callable[[int], int]) -> None:
        """Read the clock, in ns, and set it to what `wanted` makes of that, if that differs. VmError, OSError."""
        with stopped(self._pid), open(f"/proc/{self._pid}/mem", "r+b", buffering=0) as memory:
            scratch = (stack_pointer(self._pid) - BELOW_STACK_BYTES) & ~63
            call(self._pid, self._instruction, SYS_IOCTL, self._fd, KVM_GET_CLOCK, scratch)
            found = CLOCK_DATA.unpack(os.pread(memory.fileno(), CLOCK_DATA.size, scratch))[0]
            value = wanted(found)
            if value != found:
                os.pwrite(memory.fileno(), CLOCK_DATA.pack(value, 0, 0, 0, 0), scratch)
                call(self._pid, self._instruction, SYS_IOCTL, self._fd, KVM_SET_CLOCK, scratch)


class SlowWay:
    """kvmclock corrected once a second, after a cut."""

    def __init__(self, pid: int) -> None:
        """VmError when the process has no KVM VM."""
        self._clock = KvmClock(pid)
        self._anchor: Anchor | None = None
        self._ours_ns = 0  # for so long cuts may have held the VM since the last look
        self._due = 0

    def after_cut(self, took_ns: int) -> None:
        """A cut took so long, its monitor call included. VmError or OSError when the clock cannot be set."""
        self._ours_ns += took_ns
        if time.monotonic_ns() >= self._due:
            self._due = time.monotonic_ns() + EVERY_NS
            self._clock.move(self._wanted)

    def _wanted(self, found: int) -> int:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        if self._anchor is None:
            self._anchor = Anchor("kvmclock", found, now)
            return found
        late = self._anchor.look(found, now, self._ours_ns)
        self._ours_ns = 0
        if not self._anchor.ran:
            return found
        self._anchor.wrote(found + late)
        return found + late


def _link(pid: int, fd: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except FileNotFoundError:
        return ""
