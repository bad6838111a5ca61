# SPDX-License-Identifier: Apache-2.0
"""How a VM is, as each daemon tells it. Every key is always there, so that readers need no guesses.

A status is a value, made again each time: the worker makes one of its VM, the host daemon adds what it knows itself,
the agent makes one of each replica. docs/json.md is made from these types.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Struct

from remusdb.core.bounds import for_people
from remusdb.reasons import Reason
from remusdb.says import says
from remusdb.troubles import Trouble

TEXT_MAX_BYTES: Final = 1536  # a reason made of a few others; a control line has room for 400 VMs with four such texts
WEAKNESS_MAX_BYTES: Final = 512  # and such a one

State = Literal[
    "unprotected",
    "seeding",  # the initial sync runs; output is not held
    "protected",
    "held",  # output waits for the backup, or for whoever decides
    "solo",  # it runs alone, and is protected again as soon as that can be
    "fenced",  # another host owns it: here it is silent, and quarantined
    "failed",
]
ReplicaState = Literal[
    "empty",  # nothing could be resumed here
    "seeding",  # the initial sync comes
    "ready",  # it could be resumed here
    "deciding",  # the arbiter is asked whether it may
    "promoted",  # this host took it over
    "failed",  # its state file cannot be read
]

Reasoned = Annotated[str, says("why it is in that state, in words; and what is wrong besides")]
Why = Annotated[Reason | None, says("why it is in that state, for programs; null: there is nothing to say")]
Hint = Annotated[str, says("what to do about it; empty: nothing")]
Troubled = Annotated[list[Trouble], says("what is wrong while it is protected all the same: see hooks.md")]
Stages = Annotated[
    dict[str, float],
    says(
        "medians of what an epoch takes: `stop`, until the VM is paused; while it is, `gates`, `find` (the pages "
        "that were written), `read` (them), `marked` (the gates), `state` (of its devices); then `encode`, `send`, "
        "`ack` (by the backup), `release` (of its output)"
    ),
]
ProvenAt = Annotated[int | None, says("when QEMU on the backup last accepted this VM's state, by the backup's clock")]
ProvenEpoch = Annotated[int | None, says("the epoch whose state that was")]
ProvenTook = Annotated[float | None, says("how long QEMU took for it")]
Unproven = Annotated[str, says("why the standby is not proven; empty: it is, or nobody has tried yet")]
QuarantinedDisks = Annotated[dict[str, str], says("disks of a fenced VM that are quarantined here: target -> path")]
Heartbeat = Literal["datagrams", "connection"] | None
Owner = Annotated[str, says("the host that owns the VM in `term`; empty: nobody that is known here")]


class VmStatus(Struct, frozen=True, kw_only=True):
    """One VM of this host, as its host daemon tells it. A number is null until there is one."""

    vm: Annotated[str, says("its name in libvirt")]
    role: Annotated[Literal["primary"], says("reported by the host daemon")] = "primary"
    state: Annotated[
        State, says("held: output waits; solo: it runs without a backup for now; fenced: another host owns it")
    ] = "unprotected"
    reason: Reasoned = ""
    why: Why = None
    hint: Hint = ""
    troubles: Troubled = []
    weakness: Annotated[
        str, says("what is wrong while it is protected all the same, in words; empty: nothing, or it is not protected")
    ] = ""
    peer: Annotated[str | None, says("the host that it is protected to, or was last")] = None
    owner: Owner = ""
    wanted: Annotated[bool, says("protection was asked for here, and nobody has ended it since")] = False
    running: Annotated[bool, says("libvirt has it running, or did not say")] = True
    quarantined_disks: QuarantinedDisks = {}
    term: Annotated[int, says("the newest that this host knows")] = 0
    epoch: Annotated[int, says("the last that was cut")] = 0
    committed: Annotated[int, says("the last epoch that the backup holds, complete")] = 0
    committed_age_ms: Annotated[float | None, says("how old the state is that it holds")] = None
    epoch_mode: Annotated[str | None, says("when one is cut: on-demand, or fixed at every `epoch_ms`")] = None
    epoch_ms: Annotated[int | None, says("the setting")] = None
    epochs_per_s: Annotated[float | None, says("epochs cut in a second, by the last hundred")] = None
    epochs_for: Annotated[dict[str, int], says("why the last hundred were cut: see configuration.md")] = {}
    commit_ms_p50: Annotated[float | None, says("from a cut until its output is released: the median")] = None
    commit_ms_p99: Annotated[float | None, says("the same, of which 1 % take longer")] = None
    heartbeat: Annotated[
        Heartbeat, says("by what the backup is heard: answers to datagrams, or its connection alone; null: by neither")
    ] = None
    window: Annotated[int | None, says("epochs that may be under way at a time")] = None
    in_flight: Annotated[int, says("epochs that are under way")] = 0
    pause_ms_p50: Annotated[float | None, says("how long the VM is paused for a cut: the median")] = None
    pause_ms_p99: Annotated[float | None, says("the same, of which 1 % are longer")] = None
    pause_share: Annotated[float | None, says("of all time it is paused for so much, by the last hundred cuts")] = None
    stages_ms: Stages = {}
    bytes_per_epoch: Annotated[float | None, says("what an epoch takes on the wire: the median")] = None
    bytes_per_s: Annotated[float | None, says("what epochs take on the wire in a second, by the last hundred")] = None
    delta_cache_hits: Annotated[float | None, says("share of the pages whose content before was remembered")] = None
    drt_references: Annotated[
        int | None,
        says("pages sent as references to a disk in the last hundred epochs; null: `disk_read_tracking` is off"),
    ] = None
    drt_reference_share: Annotated[float | None, says("the same, as a share of all pages of these epochs")] = None
    dirty_pages: Annotated[float | None, says("pages of memory in an epoch: the median")] = None
    seeded_bytes: Annotated[int | None, says("what the initial sync of the disks took on the wire")] = None
    same_bytes: Annotated[int | None, says("what of the disks the backup had already")] = None
    proven_at_ns: ProvenAt = None
    proven_epoch: ProvenEpoch = None
    proven_ms: ProvenTook = None
    unproven: Unproven = ""
    held_frames: Annotated[int, says("network frames that wait for the backup now")] = 0
    held_bytes: Annotated[int, says("their bytes")] = 0
    dropped_frames: Annotated[int, says("frames for which there was no room to wait (`held_max_bytes`)")] = 0
    release: Annotated[str, says("which frames wait: all, or commit for those outside of open transactions")] = "all"
    early_frames: Annotated[int, says("frames that did not wait, since they were of an open transaction")] = 0
    monitor: Annotated[str | None, says("how QEMU is reached: libvirt or private")] = None
    gate: Annotated[str | None, says("what holds output back: tap or plug, see configuration.md")] = None
    encoding: Annotated[str | None, says("how memory is sent: delta or full")] = None
    accel: Annotated[str | None, says("what runs the guest: kvm or tcg")] = None
    clock_lag_ms: Annotated[float | None, says("how late the guest's clock is because of the cuts")] = None
    clock_lost_ppm: Annotated[float | None, says("the same, as a share of the time since they began")] = None
    clock_slow: Annotated[str, says("why the guest's clock is not corrected at each cut; empty: it is")] = ""
    page_kib: Annotated[int | None, says("how much memory counts as written after one write of the guest")] = None

    def __post_init__(self) -> None:
        """Words of peers, QEMU and libvirt are cut. A name stays as it is: by it the VM is found again."""
        for_people(self, "reason", "hint", "unproven", "clock_slow", most=TEXT_MAX_BYTES)
        for_people(self, "weakness", most=WEAKNESS_MAX_BYTES)  # `reason` has all of it


class StandbyStatus(Struct, frozen=True, kw_only=True):
    """One VM that this host keeps a replica of, kept one of, or took over, as its agent tells it."""

    vm: Annotated[str, says("its name in libvirt")]
    role: Annotated[Literal["standby", "promoted"], says("promoted: the agent took it over")] = "standby"
    state: Annotated[ReplicaState, says("ready: it could be resumed here; failed: its state file cannot be read")] = (
        "empty"
    )
    reason: Reasoned = ""
    why: Why = None
    hint: Hint = ""
    peer: Annotated[str, says("the host that protects it to here, or did last")] = ""
    owner: Owner = ""
    term: Annotated[int, says("the newest that this host knows")] = 0
    committed: Annotated[int, says("the last epoch that is here, complete")] = 0
    applied: Annotated[int, says("the last epoch that the replica's memory and disks have")] = 0
    troubles: Troubled = []
    primary_silence_ms: Annotated[int | None, says("how long the primary has been silent; null: none is expected")] = (
        None
    )
    silence_limit_ms: Annotated[
        int | None, says("after so long a silence it counts as dead, by what its link has shown")
    ] = None
    heartbeat: Annotated[
        Heartbeat, says("by what the primary is heard: datagrams, or its connection alone; null: none is expected")
    ] = None
    proven_at_ns: ProvenAt = None
    proven_epoch: ProvenEpoch = None
    proven_ms: ProvenTook = None
    unproven: Unproven = ""
    quarantined_disks: QuarantinedDisks = {}
    decided_at_ns: Annotated[int | None, says("when a takeover was decided, by this host's clock")] = None
    resumed_at_ns: Annotated[int | None, says("when the VM ran here")] = None

    def __post_init__(self) -> None:
        """As in VmStatus."""
        for_people(self, "reason", "hint", "unproven", most=TEXT_MAX_BYTES)
