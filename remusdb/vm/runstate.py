# SPDX-License-Identifier: Apache-2.0
"""Whether a VM runs, by QEMU's own word, and what that means for a takeover.

libvirt is not asked for it: it takes the VM for paused in every cut. Nor is the device state: QEMU's save of it calls
every VM "running". Only for what QEMU calls "paused" libvirt may know why.
"""

from __future__ import annotations

from dataclasses import dataclass

import libvirt

from remusdb.errors import VmError
from remusdb.troubles import RunTrouble
from remusdb.vm.domain import Domain
from remusdb.vm.monitor import field_of

RUNNING = "running"
# A takeover lets the VM run: it ran, its guest sleeps and can be woken, or a disk of this host failed, not its own.
LIVES_ON = (RUNNING, "suspended", "io-error")


@dataclass(frozen=True)
class RunState:
    """What QEMU says, and what to tell of it; `reason` is empty for a VM that runs."""

    status: str
    reason: str = ""
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
        return RunState(status, _disk_words(domain))
    if status == "paused" and _dumped(domain):
        return RunState(status, "it stands still while libvirt writes a dump of it")
    return judge(domain.name, status)


def judge(name: str, status: str) -> RunState:
    """A state that needs no further question."""
    stays = status not in LIVES_ON
    after = "; after a takeover it stays so" if stays else ""
    known = {
        "paused": f"it is suspended{after}; to let it run: virsh resume {name}",
        "suspended": f"its guest sleeps; to wake it: virsh dompmwakeup {name}",
        "shutdown": f"its guest has shut down, QEMU is kept{after}",
        "guest-panicked": f"its guest has crashed, QEMU is kept{after}; to start it anew: virsh reset {name}",
        "watchdog": f"its watchdog has stopped it{after}; to let it run: virsh resume {name}",
        "internal-error": f"an internal error of QEMU{after}; see /var/log/libvirt/qemu/{name}.log",
    }
    return RunState(status, known.get(status, f"QEMU does not run it ({status}){after}"), stays)


def _disk_words(domain: Domain) -> str:
    """Which disk, and whether its file system is full."""
    retry = f"then: virsh resume {domain.name}"
    try:
        errors = domain.calls.call(f"disks of {domain.name}", domain.handle.diskErrors, 0)
    except VmError:
        errors = {}
    full = sorted(disk for disk, code in errors.items() if code == libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE)
    if full:
        return f"QEMU has paused it: no space left on this host for disk {', '.join(full)}; make room, {retry}"
    named = f"disk {', '.join(sorted(errors))}" if errors else "a disk"
    return f"QEMU has paused it: I/O error of {named} on this host; mend it, {retry}"


def _dumped(domain: Domain) -> bool:
    """Whether libvirt stopped the VM for a dump and will start it again: nobody wants it to stand still."""
    try:
        state, reason = domain.calls.call(f"state of {domain.name}", domain.handle.state)
    except VmError:
        return False
    return bool(state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_DUMP)
