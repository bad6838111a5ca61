# SPDX-License-Identifier: Apache-2.0
"""Whether a VM has ended, and who wanted that. Each of these waits: for QEMU, or for QEMU's or libvirt's word."""

from __future__ import annotations

from pathlib import Path

from remusdb.core.primary_events import VmEnded, VmEnds, VmLives
from remusdb.errors import LibvirtAway, VmError
from remusdb.host.shutdown import is_marked
from remusdb.reasons import Code, Reason
from remusdb.vm.endwatch import LIBVIRT_S, QEMU_END_S, WORD_S
from remusdb.wording import words
from remusdb.worker.resources import Resources

SHUTDOWN_S = 10.0  # and one that said that it shuts down, whose disks are flushed
# For libvirt's word on a QEMU that init has reaped, so that nothing else tells how it ended. systemd reaps at once, and
# libvirt speaks then within some 10 ms; on a busy host more than SHUTOFF_S were seen.
REAPED_S = 2.0


def look(resources: Resources) -> VmLives | VmEnds:
    """Whether QEMU has ended, or ends now; one that said so is given more time."""
    if not _ends(resources):
        return VmLives()
    asked_to = resources.end is not None and resources.end.by_signal
    return VmEnds(crashed=not asked_to and resources.domain.exited_well() is False)


def who_ended_it(resources: Resources, run_dir: Path) -> VmEnded:
    """Of a VM that is gone: whether somebody wanted that."""
    if not _wanted_off(resources):
        return VmEnded(wanted=False, with_host=False, why=Reason.of(Code.ENDED))
    if is_marked(run_dir):
        return VmEnded(wanted=True, with_host=True, why=Reason.of(Code.HOST_STOPS))
    return VmEnded(wanted=True, with_host=False, why=Reason.of(resources.end.why if resources.end else Code.ENDED))


def why(resources: Resources | None, exc: BaseException) -> BaseException:
    """Why the initial sync failed: that its VM was shut down in it is the reason, not what broke first."""
    if resources is None or resources.end is None or not _ends(resources) or not _wanted_off(resources):
        return exc
    return VmError(f"{words(Reason.of(resources.end.why))}, during the initial sync")


def _ends(resources: Resources) -> bool:
    """A QEMU that ends closes its disks before its process is gone, and answers nobody then; seen to take longer than
    `QEMU_END_S` on a busy host, without a word before where libvirt ends it (`virsh destroy`)."""
    if resources.domain.ends_within(QEMU_END_S):
        return True
    if resources.end is None or not resources.end.coming:
        try:
            resources.domain.qmp("query-status")
        except LibvirtAway:  # that says nothing of QEMU
            return resources.domain.ends_within(0.0)
        except VmError:
            return resources.domain.ends_within(SHUTDOWN_S)
        return False
    return resources.domain.ends_within(SHUTDOWN_S)


def _wanted_off(resources: Resources) -> bool:
    """Whether somebody wanted the VM off, by QEMU's own last word, or by what is seen of its end."""
    ended_well = resources.domain.exited_well()
    if ended_well is None and resources.end is not None:
        resources.end.await_word(REAPED_S)
    wanted = (resources.end is not None and resources.end.coming) or resources.domain.was_shut_down()
    if not wanted or resources.end is None:
        return wanted
    resources.end.await_word(LIBVIRT_S if ended_well else WORD_S)
    return resources.end.was_destroyed() if resources.end.by_signal else True
