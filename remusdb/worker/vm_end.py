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
from remusdb.worker.resources import Parts

SHUTDOWN_S = 10.0  # and one that said that it shuts down, whose disks are flushed
# For libvirt's word on a QEMU that init has reaped, so that nothing else tells how it ended. systemd reaps at once, and
# libvirt speaks then within some 10 ms; on a busy host more than SHUTOFF_S were seen.
REAPED_S = 2.0


def look(parts: Parts) -> VmLives | VmEnds:
    """Whether QEMU has ended, or ends now; one that said so is given more time."""
    if not _ends(parts):
        return VmLives()
    asked_to = parts.end is not None and parts.end.by_signal
    return VmEnds(crashed=not asked_to and parts.domain.exited_well() is False)


def who_ended_it(parts: Parts, run_dir: Path) -> VmEnded:
    """Of a VM that is gone: whether somebody wanted that."""
    if not _wanted_off(parts):
        return VmEnded(wanted=False, with_host=False, why=Reason.of(Code.ENDED))
    if is_marked(run_dir):
        return VmEnded(wanted=True, with_host=True, why=Reason.of(Code.HOST_STOPS))
    return VmEnded(wanted=True, with_host=False, why=Reason.of(parts.end.why if parts.end else Code.ENDED))


def why(parts: Parts | None, exc: BaseException) -> BaseException:
    """Why the initial copy failed: that its VM was shut down in it is the reason, not what broke first."""
    if parts is None or parts.end is None or not _ends(parts) or not _wanted_off(parts):
        return exc
    return VmError(f"{words(Reason.of(parts.end.why))}, during the initial copy")


def _ends(parts: Parts) -> bool:
    """A QEMU that ends closes its disks before its process is gone, and answers nobody then; seen to take longer than
    `QEMU_END_S` on a busy host, without a word before where libvirt ends it (`virsh destroy`)."""
    if parts.domain.ends_within(QEMU_END_S):
        return True
    if parts.end is None or not parts.end.coming:
        try:
            parts.domain.qmp("query-status")
        except LibvirtAway:  # that says nothing of QEMU
            return parts.domain.ends_within(0.0)
        except VmError:
            return parts.domain.ends_within(SHUTDOWN_S)
        return False
    return parts.domain.ends_within(SHUTDOWN_S)


def _wanted_off(parts: Parts) -> bool:
    """Whether somebody wanted the VM off, by QEMU's own last word, or by what is seen of its end."""
    ended_well = parts.domain.exited_well()
    if ended_well is None and parts.end is not None:
        parts.end.await_word(REAPED_S)
    wanted = (parts.end is not None and parts.end.coming) or parts.domain.was_shut_down()
    if not wanted or parts.end is None:
        return wanted
    parts.end.await_word(LIBVIRT_S if ended_well else WORD_S)
    return parts.end.was_destroyed() if parts.end.by_signal else True
