# SPDX-License-Identifier: Apache-2.0
"""The end of a VM's QEMU by the kernel alone, for when libvirt hangs or is dead."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
from collections.abc import Iterator
from pathlib import Path

from remusdb.errors import VmError
from remusdb.vm.domain import PID_FOLDER

GUEST = re.compile(rb"guest=((?:[^,]|,,)*)")  # a comma inside an option of QEMU's is doubled


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
    try:
        pid = int((PID_FOLDER / f"{vm}.pid").read_text())
        pidfd = os.pidfd_open(pid)
        ours = is_qemu_of(vm, Path(f"/proc/{pid}/cmdline").read_bytes())
    except (OSError, ValueError):
        ours = False
    try:
        yield pidfd if ours else None
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def is_qemu_of(vm: str, cmdline: bytes) -> bool:
    """Whether this command line (as /proc gives it) is the QEMU that libvirt started for the VM."""
    words = cmdline.split(b"\0")
    for option, value in zip(words, words[1:], strict=False):
        found = GUEST.match(value)
        if option == b"-name" and found:
            return found[1].replace(b",,", b",") == vm.encode()
    return False
