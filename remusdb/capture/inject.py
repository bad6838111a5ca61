# SPDX-License-Identifier: Apache-2.0
"""One system call inside a running process, made through ptrace.

QEMU must itself create the userfaultfd that watches its memory. The process is interrupted for about 2 ms
(measured), runs a `syscall` instruction that libc holds, and goes on with its registers and signals as they were.

Invariant: a result is only believed after the trap that follows the instruction. A stop for any other reason (somebody
sends SIGSTOP or SIGCONT just then) comes before or after it, and the registers still hold what we wrote: taken for a
descriptor, that would close one of QEMU's own.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from remusdb.capture.kernel import SYS_CLOSE, SYS_USERFAULTFD, UFFD_USER_MODE_ONLY, check, libc, pidfd_getfd
from remusdb.errors import VmError

PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_SINGLESTEP, PTRACE_DETACH = 12, 13, 9, 17
PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
PTRACE_GETSIGMASK, PTRACE_SETSIGMASK = 0x420A, 0x420B
SIGMASK_BYTES = 8
WALL = 0x40000000
NO_RESTART = 2**64 - 1  # orig_rax of -1: the kernel must not restart an interrupted call with our registers
SYSCALL_OPCODE = b"\x0f\x05"


class Registers(ctypes.Structure):
    """struct user_regs_struct, x86-64."""

    _fields_ = [
        (name, ctypes.c_ulonglong)
        for name in (
            "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
            "fs_base gs_base ds es fs gs"
        ).split()
    ]


libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, address: int | None = None, data: int | None = None) -> None:
    check(libc.ptrace(request, pid, address, data), "ptrace")


def syscall_instruction(pid: int) -> int:
    """Where a `syscall` instruction stands in the process. VmError when it maps no libc."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
        for line in maps:
            if "r-xp" in line and ("libc.so" in line or "libc-2" in line):
                low, high = (int(part, 16) for part in line.split()[0].split("-"))
                memory.seek(low)
                at = memory.read(high - low).find(SYSCALL_OPCODE)
                if at >= 0:
                    return low + at
    raise VmError(f"process {pid} maps no libc with a syscall instruction")


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The main thread of `pid` stands still, and no signal but SIGSTOP and SIGKILL reaches it meanwhile."""
    try:
        _ptrace(PTRACE_SEIZE, pid)
    except OSError as exc:
        hint = "remusdb must run as root, with ptrace allowed (kernel.yama.ptrace_scope < 3), and no debugger attached"
        raise VmError(f"cannot attach to QEMU (pid {pid}): {exc}", hint=hint) from exc
    try:
        _ptrace(PTRACE_INTERRUPT, pid)
        _await_stop(pid)
        mask, everything = ctypes.c_uint64(), ctypes.c_uint64(2**64 - 1)
        _ptrace(PTRACE_GETSIGMASK, pid, SIGMASK_BYTES, ctypes.addressof(mask))
        _ptrace(PTRACE_SETSIGMASK, pid, SIGMASK_BYTES, ctypes.addressof(everything))
        try:
            yield
        finally:
            _ptrace(PTRACE_SETSIGMASK, pid, SIGMASK_BYTES, ctypes.addressof(mask))
    finally:
        _ptrace(PTRACE_DETACH, pid)  # a process that was told to stop meanwhile stops now


def _await_stop(pid: int) -> tuple[int, int]:
    """(signal, ptrace event) of the next stop; the event is 0 when the signal is about to be delivered."""
    status = os.waitpid(pid, WALL)[1]
    if not os.WIFSTOPPED(status):
        raise OSError(errno.ESRCH, "it ended meanwhile")
    return os.WSTOPSIG(status), status >> 16


def stack_pointer(pid: int) -> int:
    """Of the stopped main thread."""
    saved = Registers()
    _ptrace(PTRACE_GETREGS, pid, None, ctypes.addressof(saved))
    return int(saved.rsp)


def call(pid: int, instruction: int, number: int, first: int, second: int = 0, third: int = 0) -> int:
    """Run one system call in the stopped main thread of `pid`; its result or OSError."""
    saved = Registers()
    _ptrace(PTRACE_GETREGS, pid, None, ctypes.addressof(saved))
    work = Registers.from_buffer_copy(saved)
    work.rax, work.orig_rax, work.rip = number, NO_RESTART, instruction
    work.rdi, work.rsi, work.rdx = first, second, third
    try:
        _ptrace(PTRACE_SETREGS, pid, None, ctypes.addressof(work))
        stop, event, deliver = 0, 0, 0
        while (stop, event) != (signal.SIGTRAP, 0):
            _ptrace(PTRACE_SINGLESTEP, pid, None, deliver)
            stop, event = _await_stop(pid)
            # SIGSTOP goes its way: then the other threads stop, and this one does, once it is let go.
            deliver = 0 if event or stop == signal.SIGTRAP else stop
        _ptrace(PTRACE_GETREGS, pid, None, ctypes.addressof(work))
    finally:
        _ptrace(PTRACE_SETREGS, pid, None, ctypes.addressof(saved))
    if work.rip != instruction + len(SYSCALL_OPCODE):
        raise VmError(f"QEMU (pid {pid}) did not run the system call that was put into it", hint="try again")
    result = ctypes.c_longlong(work.rax).value
    if -4096 < result < 0:
        raise OSError(-result, f"{os.strerror(-result)} (injected system call {number})")
    return result


def _userfaultfd(fd: int) -> int:
    """The descriptor, if it is what QEMU said: which one we got is QEMU's word. VmError, and closed, if it is not."""
    if (found := os.readlink(f"/proc/self/fd/{fd}")) != "anon_inode:[userfaultfd]":
        os.close(fd)
        raise VmError(f"QEMU handed {found} instead of a userfaultfd", hint="look at what its process is doing")
    return fd


def userfaultfd_of(pid: int, flags: int = UFFD_USER_MODE_ONLY) -> int:
    """A userfaultfd that watches the memory of process `pid`, as a descriptor of this process alone.

    QEMU's own copy is closed again, so that the watch ends when this process closes its descriptor or dies. `flags` of
    0: faults that the kernel takes for QEMU are told as well, which only a privileged QEMU may ask for.
    """
    try:
        instruction = syscall_instruction(pid)
        with stopped(pid):
            theirs = call(pid, instruction, SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | flags)
            try:
                return _userfaultfd(pidfd_getfd(pid, theirs))
            finally:
                call(pid, instruction, SYS_CLOSE, theirs)
    except OSError as exc:
        hint = "QEMU's seccomp sandbox or the kernel forbids userfaultfd" if exc.errno == errno.EPERM else ""
        raise VmError(f"no userfaultfd in QEMU (pid {pid}): {exc}", hint=hint) from exc
