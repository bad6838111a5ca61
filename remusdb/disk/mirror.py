# SPDX-License-Identifier: Apache-2.0
"""The block copy that sends every write of one disk to its write log.

Owns one libvirt block copy job (never pivoted). Invariant: once `ready`, a guest write completes only after the
NBD target answered it, until the job is gone. A job that is gone lets the guest run on, unmirrored and without a
word to us, so an epoch may be committed only if the job was still `actively-synced` *after* its cut: ask
`unsynced` between the cut and the commit, with the VM running again.

    new ──start()──▶ running ──initial sync done──▶ ready ──target error, abort, VM off──▶ gone
                        └───────────stop()────────────┴──────────────────────────────────▶ gone

Every call here can block in libvirt: the caller adds threads and deadlines. `stop` waits for the writes in
flight, so keep taking from the write log, or close it first.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import libvirt

from remusdb import safexml
from remusdb.errors import DiskError, VmError
from remusdb.vm.monitor import LibvirtMonitor, objects_in

_COPY_FLAGS = (
    libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
    | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
    | libvirt.VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES
)
_GONE_CODES = (
    libvirt.VIR_ERR_NO_DOMAIN,
    libvirt.VIR_ERR_OPERATION_INVALID,  # the domain is not running
    libvirt.VIR_ERR_INVALID_ARG,  # "disk 'vda' does not have an active block job"
)
_ENDING_S = 2.0
_ASK_AGAIN_S = 0.05


@dataclass(frozen=True)
class MirrorState:
    """Where a mirror stands; `reason` says why it is gone."""

    name: Literal["running", "ready", "gone"]
    reason: str = ""


def unsynced(jobs: Sequence[Mapping[str, Any]], targets: Iterable[str]) -> list[str]:
    """Of `targets`, those whose copy is not whole and current, by a reply of QMP `query-block-jobs`."""
    return [target for target in targets if not _is_synced(_job_of(jobs, target))]


def query_block_jobs(domain: libvirt.virDomain) -> list[dict[str, Any]]:
    """QMP `query-block-jobs` through libvirt's monitor: all disks' jobs in one call (2-3 ms)."""
    try:
        return objects_in("query-block-jobs", LibvirtMonitor(domain).execute("query-block-jobs", {}))
    except (libvirt.libvirtError, VmError) as error:
        raise DiskError(f"cannot query block jobs: {error}") from error


class Mirror:
    """The block copy of one disk to one NBD socket. For one thread at a time."""

    def __init__(self, domain: libvirt.virDomain, target: str, nbd_socket: Path, export: str) -> None:
        """`target`: the guest's name of the disk (vda); `export`: NBD export name."""
        self.target = target
        self._domain = domain
        self._socket = nbd_socket
        self._export = export

    def renew(self, domain: libvirt.virDomain) -> None:
        """Use this handle from now on: libvirtd came back. The job itself is QEMU's and went on."""
        self._domain = domain

    def start(self) -> None:
        """Begin the copy. A leftover of ours (a worker that was killed) is ended first."""
        if self._socket_of_active_job() == str(self._socket):
            self.stop()
        try:
            self._domain.blockCopy(self.target, self._destination(), {}, _COPY_FLAGS)
        except libvirt.libvirtError as error:
            raise DiskError(
                f"cannot mirror disk {self.target}: {error}", hint=_start_hint(error, self.target)
            ) from error

    def progress(self) -> tuple[int, int]:
        """(done, total) in bytes of the initial sync; (0, 0) when there is no job."""
        info = self._job_info()
        return (int(info["cur"]), int(info["end"])) if info else (0, 0)

    def set_speed(self, bytes_s: int) -> None:
        """Bound the initial sync; 0 is no bound. The guest's own writes are not slowed. Quiet when it is over."""
        try:
            self._domain.blockJobSetSpeed(self.target, bytes_s, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _GONE_CODES:
                raise DiskError(f"cannot set the speed of the copy of {self.target}: {error}") from error

    def ready(self) -> bool:
        """The copy is whole and every write is mirrored before it completes."""
        return not unsynced(query_block_jobs(self._domain), [self.target])

    def state(self) -> MirrorState:
        """Where the job stands now. Never raises for a job, or a VM, that went away."""
        try:
            if not self._job_info():
                return MirrorState("gone", f"the block copy of {self.target} ended")
            return MirrorState("ready" if self.ready() else "running")
        except DiskError as error:
            return MirrorState("gone", str(error))

    def stop(self) -> None:
        """End the copy without pivoting; the disk's chain is as it was found. Idempotent.

        A job that ends by itself at this moment takes no orders any more ("in state 'concluded'"), and is there until
        libvirt has put it away: asked again for `_ENDING_S`.
        """
        until = time.monotonic() + _ENDING_S
        while (error := self._abort()) is not None:
            if time.monotonic() > until:
                hint = f"virsh blockjob VM {self.target} --abort"
                raise DiskError(f"cannot end the mirror of {self.target}: {error}", hint=hint) from error
            time.sleep(_ASK_AGAIN_S)

    def _abort(self) -> libvirt.libvirtError | None:
        """End the job, if there is one; the error, if there still may be one."""
        try:
            if self._domain.blockJobInfo(self.target, 0):
                self._domain.blockJobAbort(self.target, 0)
        except libvirt.libvirtError as error:
            return None if error.get_error_code() in _GONE_CODES else error
        return None

    def _job_info(self) -> dict[str, int]:
        try:
            return dict(self._domain.blockJobInfo(self.target, 0) or {})
        except libvirt.libvirtError as error:
            raise DiskError(f"cannot ask for the mirror of {self.target}: {error}") from error

    def _destination(self) -> str:
        """`discard='unmap'` lets QEMU clear the target with sparse zeroes instead of copying them."""
        disk = ElementTree.Element("disk", type="network", device="disk")
        ElementTree.SubElement(disk, "driver", name="qemu", type="raw", discard="unmap")
        source = ElementTree.SubElement(disk, "source", protocol="nbd", name=self._export)
        ElementTree.SubElement(source, "host", transport="unix", socket=str(self._socket))
        return ElementTree.tostring(disk, encoding="unicode")

    def _socket_of_active_job(self) -> str:
        """The NBD socket that a block copy of this disk already writes to, or empty."""
        for disk in _live_disks(self._domain):
            if _attribute(disk, "target", "dev") == self.target:
                return _attribute(disk, "mirror/source/host", "socket")
        return ""


def _start_hint(error: libvirt.libvirtError, target: str) -> str:
    if error.get_error_code() == libvirt.VIR_ERR_BLOCK_COPY_ACTIVE:
        return f"another block job runs on this disk: wait for it, or `virsh blockjob VM {target} --abort`"
    if "ermission denied" in str(error):
        return "QEMU's user must be able to reach the NBD socket (folder modes, AppArmor, SELinux)"
    return "libvirt's log of this domain has QEMU's own message"


def _job_of(jobs: Sequence[Mapping[str, Any]], target: str) -> Mapping[str, Any] | None:
    """libvirt names its copy jobs `copy-TARGET-NODE`."""
    return next((job for job in jobs if str(job.get("device", "")).startswith(f"copy-{target}-")), None)


def _is_synced(job: Mapping[str, Any] | None) -> bool:
    if job is None:
        return False
    if "actively-synced" not in job:
        raise DiskError("QEMU does not report actively-synced", hint="QEMU 8.2 or later is needed")
    # A target error clears `ready` or fails the job only a moment later; `error` is set in between.
    return bool(job.get("ready")) and bool(job["actively-synced"]) and not job.get("error")


# --- the disks of a domain --------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiskSpec:
    """One disk of a running domain. `path` is empty where no local file or device is named, or no medium is in."""

    target: str
    path: str
    format: str
    capacity_bytes: int
    readonly: bool
    device: str = "disk"

    @property
    def mirrored(self) -> bool:
        """Whether the guest can write it: not a CD, and not a floppy drive, which is empty in a protected VM."""
        return self.device == "disk" and not self.readonly


def disks_of(domain: libvirt.virDomain) -> list[DiskSpec]:
    """The disks of the live domain, in the order of its XML; floppies and CD drives too (see `device`)."""
    return [_spec(domain, disk) for disk in _live_disks(domain)]


def _spec(domain: libvirt.virDomain, disk: ElementTree.Element) -> DiskSpec:
    target = _attribute(disk, "target", "dev")
    has_medium = disk.find("source") is not None and disk.get("device", "disk") == "disk"
    return DiskSpec(
        target=target,
        path=_attribute(disk, "source", "file") or _attribute(disk, "source", "dev"),
        format=_attribute(disk, "driver", "type"),
        capacity_bytes=_capacity(domain, target) if has_medium else 0,
        readonly=disk.find("readonly") is not None,
        device=disk.get("device", "disk"),
    )


def _capacity(domain: libvirt.virDomain, target: str) -> int:
    try:
        return int(domain.blockInfo(target, 0)[0])
    except libvirt.libvirtError as error:
        raise DiskError(f"cannot learn the size of disk {target}: {error}") from error


def _live_disks(domain: libvirt.virDomain) -> list[ElementTree.Element]:
    try:
        return safexml.parse(domain.XMLDesc(0)).findall("devices/disk")
    except libvirt.libvirtError as error:
        raise DiskError(f"cannot read the domain's disks: {error}") from error


def _attribute(parent: ElementTree.Element, path: str, name: str) -> str:
    found = parent.find(path)
    return "" if found is None else found.get(name, "")
