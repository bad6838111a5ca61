# SPDX-License-Identifier: Apache-2.0
"""The status of one VM as the host daemon tells it: every key always there, so that readers need no guesses."""

from __future__ import annotations

from typing import Any

import msgspec

from remusdb.printable import printable

TEXT_MAX_BYTES = 2048  # a reason made of a few others; a control line has room for 600 VMs with three such texts


class VmStatus(msgspec.Struct, kw_only=True):
    """One VM of this host. Figures are None until there are any."""

    vm: str
    role: str = "primary"
    state: str = "unprotected"  # unprotected | seeding | protected | held | solo | fenced | failed
    reason: str = ""
    troubles: list[str] = []  # what is wrong all the same, by name: see docs/hooks.md
    peer: str | None = None
    owner: str = ""
    kept: dict[str, str] = {}
    term: int = 0
    epoch: int = 0
    committed: int = 0
    committed_age_ms: float | None = None
    epoch_ms: float | None = None
    window: int | None = None
    in_flight: int = 0
    pause_ms_p50: float | None = None
    pause_ms_p99: float | None = None
    bytes_per_epoch: float | None = None
    dirty_pages: float | None = None
    seeded_bytes: int | None = None  # what the initial copy of the disks took on the wire
    same_bytes: int | None = None  # and what the backup had already
    proven_at_ns: int | None = None  # when QEMU on the backup last took this VM's state, by the backup's clock
    proven_epoch: int | None = None
    proven_ms: float | None = None
    unproven: str = ""  # why the standby is not proven, if it is not
    held_frames: int = 0
    held_bytes: int = 0
    dropped_frames: int = 0
    monitor: str | None = None  # libvirt | private
    gate: str | None = None
    encoding: str | None = None
    accel: str | None = None
    clock_lag_ms: float | None = None  # how late the guest's clock is because of the cuts
    clock_lost_ppm: float | None = None  # that, of the time since they began
    clock_slow: str = ""  # why it is not put right at each cut
    page_kib: int | None = None  # one write of the guest makes so much of its memory count as written

    def take(self, told: dict[str, Any]) -> None:
        """Take over what a worker told; what it does not name stays, keys that are none of these are dropped."""
        for key in self.__struct_fields__:
            if key in told and key != "vm":
                setattr(self, key, told[key])

    def to_dict(self) -> dict[str, Any]:
        """As the control socket carries it: hundreds of VMs fit into one answer, whatever was said of each."""
        return short({key: getattr(self, key) for key in self.__struct_fields__})


TEXTS = ("reason", "unproven", "clock_slow")  # words of peers, QEMU and libvirt; all else are our own, or names


def short(status: dict[str, Any]) -> dict[str, Any]:
    """A status with its texts cut to `TEXT_MAX_BYTES`. A name stays as it is: by it the VM is found again."""
    return {key: printable(of, TEXT_MAX_BYTES) if key in TEXTS and of else of for key, of in status.items()}
