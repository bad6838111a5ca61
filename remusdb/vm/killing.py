# SPDX-License-Identifier: Apache-2.0
"""The end of a VM's QEMU by the kernel alone, for when libvirt hangs or is dead."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator

from remusdb.errors import VmError
from remusdb.vm.process import command_line, is_qemu_of, qemu_pid


def kill_qemu(vm: str, within_s: float) -> bool:
    """SIGKILL the VM's QEMU and wait for its end; False if there is none. VmError if it outlives `within_s`."""
    with _qemu_of(vm) as pidfd:
        if pidfd is None:
            return False
        with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if not select.select([pidfd], [], [], within_s)[0]:
            raise VmError(
                f"the QEMU of VM {vm} does not end within {within_s:g} s of SIGKILL",
                hint="it waits in the kernel, for a disk or a network file system: its output stays held",
            )
        return True


@contextlib.contextmanager
def _qemu_of(vm: str) -> Iterator[int | None]:
    """A descriptor of the process, or None. It is opened first and judged then: a number may be used again."""
    pidfd = -1
    pid = qemu_pid(vm)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
    ours = pid is not None and pidfd >= 0 and is_qemu_of(vm, command_line(pid))
    try:
        yield pidfd if ours else None
    finally:
        if pidfd >= 0:
            os.close(pidfd)
