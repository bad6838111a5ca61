# SPDX-License-Identifier: Apache-2.0
"""Whether a VM runs, by QEMU's own word, and what that means for a takeover.

libvirt is not asked for it: it takes the VM for paused in every cut. Nor is the device state: QEMU's save of it calls
every VM "running". Only for what QEMU calls "paused" libvirt may know why.
"""

from __future__ import annotations

from dataclasses import dataclass

import libvirt

from remusdb.errors import VmError
from remusdb.reasons import Code, Reason
from remusdb.troubles import RunTrouble
from remusdb.vm.domain import Domain
from remusdb.vm.monitor import field_of

RUNNING = "running"
# A takeover lets the VM run: it ran, its guest sleeps and can be woken, or a disk of this host failed, not its own.
LIVES_ON = (RUNNING, "suspended", "io-error")


CODES = {
    "paused": Code.SUSPENDED,
    "suspended": Code.GUEST_SLEEPS,
    "shutdown": Code.GUEST_SHUT_DOWN,
    "guest-panicked": Code.GUEST_CRASHED,
    "watchdog": Code.WATCHDOG,
}


@dataclass(frozen=True)
class RunState:
    """What QEMU says, and why the VM does not run; None for one that does."""

    status: str
    why: Reason | None = None
    stays: bool = False  # so after a takeover

    @property
    def what(self) -> RunTrouble:
        """The name of the trouble in history and status."""
        return "suspended" if self.status == "paused" else "io-error" if self.status == "io-error" else "stopped"


def run_state(domain: Domain) -> RunState:
    """The VM's state outside of cuts. VmError when QEMU does not say."""
    status = field_of("query-status", domain.qmp("query-status"), "status", str)
    if status == RUNNING:
        return RunState(status)
    if status == "io-error":
        return RunState(status, _disk_trouble(domain))
    if status == "paused" and _dumped(domain):
        return RunState(status, Reason.of(Code.DUMPED))
    return judge(status)


def judge(status: str) -> RunState:
    """A state that needs no further question."""
    stays = status not in LIVES_ON
    flags = {"stays": True} if stays else {}
    if status in CODES:
        return RunState(status, Reason.of(CODES[status], **flags), stays)
    return RunState(status, Reason.of(Code.STOPPED, status=status, **flags), stays)


def _disk_trouble(domain: Domain) -> Reason:
    """Which disk, and whether its file system is full."""
    try:
        errors = domain.calls.call(f"disks of {domain.name}", domain.handle.diskErrors, 0)
    except VmError:
        errors = {}
    full = sorted(disk for disk, code in errors.items() if code == libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE)
    if full:
        return Reason.of(Code.DISK_FULL, disks=", ".join(full))
    return Reason.of(Code.DISK_ERROR, disks=", ".join(sorted(errors)))


def _dumped(domain: Domain) -> bool:
    """Whether libvirt stopped the VM for a dump and will start it again: nobody wants it to stand still."""
    try:
        state, reason = domain.calls.call(f"state of {domain.name}", domain.handle.state)
    except VmError:
        return False
    return bool(state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_DUMP)
