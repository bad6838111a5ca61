# SPDX-License-Identifier: Apache-2.0
"""Are the VMs of a host safe? One answer of what both daemons tell. No clock, socket or file: it is a value.

A VM counts if it is to have a backup: protection was asked for and not ended by an operator, it is under way, or the
VM was taken over here and not removed since, or its state cannot be known. So a replica that is kept here for another
host does not count (unless this host would take it over, and may not), nor a VM that another host owns, nor one that
an operator never protected or unprotected - unless nothing else is here, or it was asked about by its name: then
"protected" would be a lie.

Invariant: what is not known is not protected.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Final, Literal

from msgspec import Struct

from remusdb.control.status import StandbyStatus, VmStatus
from remusdb.reasons import Code, Reason
from remusdb.says import says
from remusdb.wording import hint, words

Status = VmStatus | StandbyStatus
Answer = Literal["protected", "not-protected", "nothing-to-protect"]

KEPT: Final = ("seeding", "ready", "deciding")  # a replica is kept here for another host
STALE_MS: Final = 15_000.0  # epochs are cut every 10 s at the least (`epoch_max_ms`)
STANDS_STILL: Final = ("suspended", "stopped", "io-error")  # then nothing changes that could be lost
_NOBODY_RUNS_IT: Final = (  # as far as this host knows
    Code.ARBITER_AWAITED, Code.TAKEOVER_REFUSED, Code.TAKEOVER_TRIED, Code.TAKEOVER_FAILED, Code.MAY_HAVE_RUN,
)  # fmt: skip
_BY_OPERATOR: Final = (None, Code.UNPROTECT_ASKED, Code.NOT_RUNNING)


class Doubt(Struct, frozen=True, kw_only=True):
    """Why a VM is not protected, and what to do."""

    vm: Annotated[str, says("its name in libvirt; empty: all of this host")]
    reason: Annotated[str, says("why, in words")]
    why: Annotated[Reason | None, says("why, for programs; null: only words are known")]
    hint: Annotated[str, says("what to do about it; empty: nothing")] = ""

    @classmethod
    def of(cls, vm: str, why: Reason, told: str = "") -> Doubt:
        """One that has the words of this reason; `told`: what the daemon says itself that is to be done."""
        return cls(vm=vm, reason=words(why), why=why, hint=told or hint(why, vm))


class Vms(Struct, frozen=True, kw_only=True):
    """The VMs of this machine, in the order of their names, each as the daemon tells it that has more to do with it."""

    verdict: Annotated[
        Answer,
        says("of all VMs that are to have a backup; nothing-to-protect: there is none here. See `status --help`"),
    ]
    not_protected: Annotated[list[Doubt], says("those that have none now: empty unless the verdict is not-protected")]
    vms: Annotated[list[Status], says("which of the two, `role` says: `primary` is a VmStatus")]


def judge(
    vms: Sequence[Status], *, named: bool = False, host_answers: bool = True, removed: Collection[str] = ()
) -> Vms:
    """The verdict of these. `named`: one was asked about; `host_answers`: what the host daemon told is among them.

    `removed`: those that were taken over here, and that libvirt does not know any more.
    """
    counted = [one for one in vms if (_counts(one) and one.vm not in removed) or (named and _open(one))]
    if not counted and not any(is_kept(one) for one in vms):
        counted = [one for one in vms if _open(one) and isinstance(one, VmStatus) and one.running]
    doubts = [found for one in counted if (found := _doubt(one))]
    if not host_answers:
        doubts.insert(0, Doubt.of("", Reason.of(Code.HOST_SILENT)))
    answer: Answer = "not-protected" if doubts else "protected" if counted else "nothing-to-protect"
    return Vms(verdict=answer, not_protected=doubts, vms=list(vms))


def _counts(one: Status) -> bool:
    """Whether this VM is to have a backup, of this host's."""
    if isinstance(one, StandbyStatus):
        stuck = is_kept(one) and one.why is not None and one.why.code in _NOBODY_RUNS_IT
        return one.state in ("promoted", "failed") or stuck
    if one.state == "unprotected":
        code = one.why.code if one.why else None
        ended = code not in _BY_OPERATOR and one.running  # shut down, and started again without it
        return one.wanted or code == Code.TAKEN_OVER_HERE or ended
    return one.state != "fenced"


def is_kept(one: Status) -> bool:
    """Whether this host is the backup of that VM."""
    return isinstance(one, StandbyStatus) and one.state in KEPT


def _open(one: Status) -> bool:
    """Whether the VM is this host's, and has no protection."""
    return isinstance(one, VmStatus) and one.state == "unprotected"


def _doubt(one: Status) -> Doubt | None:
    if _follows(one) and isinstance(one, VmStatus):
        age_ms = one.committed_age_ms or 0.0
        if age_ms <= STALE_MS or any(name in STANDS_STILL for name in one.troubles):
            return None
        return Doubt.of(one.vm, Reason.of(Code.EXPOSED, peer=one.peer, seconds=f"{age_ms / 1000:.0f}"), one.hint)
    if one.reason:
        return Doubt(vm=one.vm, reason=one.reason, why=one.why, hint=one.hint)
    return Doubt.of(one.vm, _unsaid(one), one.hint)


def _follows(one: Status) -> bool:
    """Whether a worker that is heard says that the backup follows the VM."""
    return one.state == "protected" and not (one.why is not None and one.why.code == Code.WORKER_UNHEARD)


def _unsaid(one: Status) -> Reason:
    """Why a VM is not protected of which its daemon gives no reason."""
    if not isinstance(one, VmStatus) or one.state != "unprotected":
        return Reason.of(Code.NOT_PROTECTED, state=one.state)
    return Reason.of(Code.NO_BACKUP if one.running else Code.NO_BACKUP_OFF)
