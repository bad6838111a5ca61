# SPDX-License-Identifier: Apache-2.0
"""What can be asked of the two daemons of a machine, and what they answer. docs/json.md is made from these types.

Invariant: a VM's name in a request is one that a VM can have, at both ends.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal

from msgspec import Meta, Struct

from remusdb.control.codec import Nothing, Reply, Request
from remusdb.control.status import StandbyStatus, VmStatus
from remusdb.core.terms import Term
from remusdb.history import VmEvents
from remusdb.names import HostName, VmName, require_name
from remusdb.preflight.checks import Check
from remusdb.says import says

Peer = Annotated[str, Meta(min_length=1, max_length=255)]  # whether host.toml names it is the daemon's to say
FilePath = Annotated[str, Meta(pattern=r"^/.*[^/]$", max_length=4095)]  # PATH_MAX of linux/limits.h, less its end
REHEARSE_MOST_S = 600  # the replica stands still meanwhile

# --- answers ---


class HostVms(Struct, frozen=True, kw_only=True):
    """What the host daemon says of its VMs."""

    vms: Annotated[list[VmStatus], says("in the order of their names")]
    warnings: Annotated[list[str], says("what could not be found out")] = []


class AgentVms(Struct, frozen=True, kw_only=True):
    """What the agent says of the VMs that it keeps, kept, or took over."""

    vms: Annotated[list[StandbyStatus], says("in the order of their names")]


class Checked(Struct, frozen=True, kw_only=True):
    """What `check` found."""

    checks: Annotated[list[Check], says("in the order in which they were made")]


class Prepared(Struct, frozen=True, kw_only=True):
    """What `prepare` wrote into the VM's definition."""

    changes: Annotated[list[str], says("each in words; none: it was prepared already")]


class Switched(Struct, frozen=True, kw_only=True):
    """A VM that was moved."""

    to: Annotated[str, says("the host that runs it now")]
    term: Annotated[int, says("in which it owns the VM")]
    took_ms: Annotated[float, says("from its stop here until it was reported to run there")]


class Moved(Switched, frozen=True, kw_only=True):
    """A VM that was moved with others."""

    vm: Annotated[str, says("its name")]


class Stayed(Struct, frozen=True, kw_only=True):
    """A VM that was not moved."""

    vm: Annotated[str, says("its name")]
    reason: Annotated[str, says("why, in words")]
    exempt: Annotated[bool, says('it was to stay: `on_host_shutdown = "nothing"`')] = False


class Evacuated(Struct, frozen=True, kw_only=True):
    """What became of the VMs of a host that is to go down."""

    moved: Annotated[list[Moved], says("those that run elsewhere now")] = []
    stayed: Annotated[list[Stayed], says("those that do not")] = []
    note: Annotated[str, says("why none was even looked at; empty: they were")] = ""


class Unprotected(Struct, frozen=True, kw_only=True):
    """How a protection ended."""

    note: Annotated[str, says("what is worth knowing about it; empty: nothing")] = ""


class TakenOver(Struct, frozen=True, kw_only=True):
    """A VM that runs here now."""

    term: Annotated[int, says("in which this host owns it")]
    epoch: Annotated[int, says("at which it was resumed")]
    resume_ms: Annotated[float, says("from the decision until it ran")]
    how: Annotated[str, says("how it was started, in words")] = ""


class Look(Struct, frozen=True):
    """One thing that was looked at while a copy ran."""

    name: Annotated[str, says("runs, serial, network, tcp, agent or time")]
    ok: Annotated[bool, says("whether it is a sign of life")]
    detail: Annotated[str, says("what was seen")]


class Rehearsed(Struct, frozen=True, kw_only=True):
    """How a copy of a VM's last committed state did."""

    vm: Annotated[str, says("its name")]
    term: Annotated[int, says("of the replica")]
    epoch: Annotated[int, says("that was resumed")]
    ok: Annotated[bool, says("it ran, and gave a sign of life")]
    checks: Annotated[list[Look], says("what was looked at")]
    resume_ms: Annotated[float, says("until QEMU ran it")]
    took_ms: Annotated[float, says("all of it")]
    frozen_ms: Annotated[float, says("how long the replica was not updated")]
    held_back_epochs: Annotated[int, says("epochs that waited meanwhile, acknowledged")]


class ExportedDisk(Struct, frozen=True):
    """One disk of a VM, as a file."""

    disk: Annotated[str, says("its target in the VM's definition")]
    path: Annotated[str, says("the file")]
    size_bytes: Annotated[int, says("of the disk, as the guest sees it")]


class Exported(Struct, frozen=True, kw_only=True):
    """A VM's disks as files, all of one committed epoch."""

    vm: Annotated[str, says("its name")]
    term: Annotated[int, says("of the replica")]
    epoch: Annotated[int, says("whose end they show")]
    disks: Annotated[list[ExportedDisk], says("in the order of the VM's definition")]
    took_ms: Annotated[float, says("all of it")]
    frozen_ms: Annotated[float, says("so long the replica stood still")]
    put_by_bytes: Annotated[int, says("overwritten while they were copied, and put by before")]


class Forgotten(Struct, frozen=True, kw_only=True):
    """A VM that this host knows no owner of any more. No disk is deleted."""

    vm: Annotated[str, says("its name")]
    quarantined_disks: Annotated[list[str], says("disks that had been quarantined: their paths")]
    moved: Annotated[list[str], says("the replica's disks: where they are now")]


# --- requests ---


class OfVm(Request[Reply], Generic[Reply], frozen=True, kw_only=True):
    """About one VM."""

    vm: Annotated[VmName, says("its name in libvirt")]

    def __post_init__(self) -> None:
        """UsageError for what no VM can be called."""
        require_name(self.vm)


class Protect(OfVm[VmStatus], frozen=True, kw_only=True):
    """Protect a running VM; answered once it is."""

    to: Annotated[Peer, says("a peer of host.toml")]


class Reprotect(OfVm[VmStatus], frozen=True, kw_only=True):
    """The same for a VM that was taken over here, or lost its backup."""

    to: Annotated[Peer, says("a peer of host.toml")]


class Switchover(OfVm[Switched], frozen=True, kw_only=True):
    """Move a VM to its backup."""

    to: Annotated[Peer | None, says("protect it to there first")] = None


class Evacuate(Request[Evacuated], frozen=True, kw_only=True):
    """Move every VM to its backup."""

    if_host_stops: Annotated[bool, says("only while this host goes down")] = False


class Unprotect(OfVm[Unprotected], frozen=True, kw_only=True):
    """End protection."""

    peer_is_dead: Annotated[bool, says("confirmed by an operator instead of the agent")] = False


class Fence(OfVm[Nothing], frozen=True, kw_only=True):
    """Put the VM away here; asked by this machine's agent."""

    owner: Annotated[HostName, says("the host that protects it to here")]
    term: Annotated[Term, says("its term, newer than ours")]


class CheckVm(OfVm[Checked], frozen=True, kw_only=True, tag="check"):
    """Whether the VM can be protected, and what would make that better."""

    to: Annotated[Peer | None, says("look at this peer, too")] = None


class Prepare(OfVm[Prepared], frozen=True, kw_only=True):
    """Write into the VM's definition what makes protection cheaper."""


class HostStatus(Request[HostVms], frozen=True, kw_only=True, tag="status"):
    """How the VMs of this host are."""

    vm: Annotated[str | None, says("that one alone")] = None


class AgentStatus(Request[AgentVms], frozen=True, kw_only=True, tag="status"):
    """How what is kept here for other hosts is."""

    vm: Annotated[str | None, says("that one alone")] = None


class PastOf(OfVm[VmEvents], frozen=True, kw_only=True, tag="history"):
    """The newest events of the VM in this daemon's history."""

    last: Annotated[int, Meta(ge=1, le=500), says("so many, unless they are very long")] = 100


class Failover(OfVm[TakenOver], frozen=True, kw_only=True):
    """Take a VM over, now."""

    primary_is_dead: Annotated[bool, says("confirmed by an operator instead of the arbiter")] = False


class Rehearse(OfVm[Rehearsed], frozen=True, kw_only=True):
    """Resume a copy of the last committed state, look at it, throw it away."""

    seconds: Annotated[float, Meta(ge=1, le=REHEARSE_MOST_S), says("how long the copy runs")]
    tcp_port: Annotated[Annotated[int, Meta(ge=1, le=65535)] | None, says("a port that must answer")] = None


class Export(OfVm[Exported], frozen=True, kw_only=True):
    """Write the disks of the last committed state to files."""

    to: Annotated[FilePath, says("the file; of several disks, /srv/db1.img stands for /srv/db1-vda.img and so on")]
    folder: Annotated[
        Annotated[list[int], Meta(min_length=2, max_length=2)],
        says("device and inode of its folder, as who asks sees it"),
    ]
    format: Annotated[Literal["raw", "qcow2"], says("of the files")] = "raw"


class Forget(OfVm[Forgotten], frozen=True, kw_only=True):
    """Forget whose a VM was."""

    lose_replica: Annotated[bool, says("also if a complete replica is here whose primary is silent")] = False


HOST = (Protect, Reprotect, Switchover, Evacuate, Fence, Unprotect, HostStatus, CheckVm, Prepare, PastOf)
AGENT = (AgentStatus, Failover, Rehearse, Export, Forget, PastOf)
# What the console's group may ask for besides root: nothing that writes where the caller says, and no word of honour
# (`peer_is_dead`, `primary_is_dead`) that a program cannot give.
CONSOLE = (HostStatus, AgentStatus, PastOf, Protect, Reprotect, Switchover, Unprotect, Failover, Rehearse)


def console_may(asked: Request[Any]) -> bool:
    """Whether a member of the console's group may ask for this."""
    honour = getattr(asked, "peer_is_dead", False) or getattr(asked, "primary_is_dead", False)
    return isinstance(asked, CONSOLE) and not honour
