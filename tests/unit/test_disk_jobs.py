# SPDX-License-Identifier: Apache-2.0
"""Which disks are mirrored, read from `query-block-jobs`; the block copy's libvirt calls, by a stand-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import pytest

from remusdb.disk.mirror import DiskSpec, Mirror, disks_of, unsynced
from remusdb.errors import DiskError

READY = {"device": "copy-vda-libvirt-2-format", "type": "mirror", "ready": True, "actively-synced": True}


def test_a_ready_job_is_synced() -> None:
    assert unsynced([READY], ["vda"]) == []


@pytest.mark.parametrize(
    "job",
    [
        {**READY, "ready": False},
        {**READY, "actively-synced": False},
        {**READY, "error": "Input/output error"},
        {**READY, "device": "copy-vdaa-libvirt-2-format"},
        {**READY, "device": "commit-vda-libvirt-2-format"},
    ],
)
def test_anything_else_is_not(job: dict[str, Any]) -> None:
    assert unsynced([job], ["vda"]) == ["vda"]


def test_every_disk_is_looked_at() -> None:
    assert unsynced([READY], ["vda", "vdb"]) == ["vdb"]


def test_a_qemu_that_does_not_say_is_refused() -> None:
    with pytest.raises(DiskError, match="actively-synced") as caught:
        unsynced([{"device": "copy-vda-libvirt-2-format", "ready": True}], ["vda"])
    assert "8.2" in caught.value.hint


class Domain:
    """Stands in for virDomain: one disk, perhaps with a copy job to `socket`."""

    def __init__(self, socket: str = "") -> None:
        self.socket = socket
        self.calls: list[str] = []
        self.destination = ""
        self.flags = 0
        self.refuse: int | None = None
        self.ending = 0  # how often an abort finds the job "concluded", and not put away yet

    def XMLDesc(self, flags: int) -> str:
        mirror = f"<mirror><source><host socket='{self.socket}'/></source></mirror>" if self.socket else ""
        return f"""<domain><devices>
            <disk type='file' device='disk'><driver type='qcow2'/><source file='/a.qcow2'/>
              <target dev='vda'/>{mirror}</disk>
            <disk type='block' device='disk'><driver type='raw'/><source dev='/dev/sdx'/><target dev='vdb'/>
              <readonly/></disk>
            <disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='p/x'/>
              <target dev='vdc'/></disk>
            <disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
            </devices></domain>"""

    def blockInfo(self, target: str, flags: int) -> list[int]:
        return [1 << 30, 0, 0]

    def blockJobInfo(self, target: str, flags: int) -> dict[str, int]:
        return {"cur": 3, "end": 7} if self.socket else {}

    def blockJobAbort(self, target: str, flags: int) -> None:
        self.calls.append(f"abort {flags}")
        if self.ending:
            self.ending -= 1
            raise FakeError(libvirt.VIR_ERR_INTERNAL_ERROR)
        self.socket = ""

    def blockCopy(self, target: str, xml: str, params: dict[str, int], flags: int) -> None:
        self.calls.append("copy")
        if self.refuse is not None:
            raise FakeError(self.refuse)
        self.destination, self.flags = xml, flags


class FakeError(libvirt.libvirtError):  # type: ignore[misc]
    """A libvirtError with a code, without libvirt having failed."""

    def __init__(self, code: int) -> None:
        super().__init__("refused")
        self.err = (code, 0, "refused", 2, "", "", "", 0, 0)


def test_disks_in_the_order_of_the_xml() -> None:
    assert disks_of(Domain()) == [
        DiskSpec("vda", "/a.qcow2", "qcow2", 1 << 30, False),
        DiskSpec("vdb", "/dev/sdx", "raw", 1 << 30, True),
        DiskSpec("vdc", "", "raw", 1 << 30, False),
        DiskSpec("sda", "", "", 0, True, "cdrom"),
    ]


def test_the_copy_goes_to_the_socket_as_raw() -> None:
    domain = Domain()
    Mirror(domain, "vda", Path("/run/x&y/disk0.nbd"), "disk0").start()
    disk = ElementTree.fromstring(domain.destination)
    host, driver, source = disk.find("source/host"), disk.find("driver"), disk.find("source")
    assert host is not None and host.attrib == {"transport": "unix", "socket": "/run/x&y/disk0.nbd"}
    assert driver is not None and driver.get("type") == "raw"
    assert source is not None and source.attrib == {"protocol": "nbd", "name": "disk0"}
    assert domain.flags == (
        libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
        | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
        | libvirt.VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES
    )


def test_a_leftover_of_ours_is_ended_first() -> None:
    domain = Domain(socket="/run/x/disk0.nbd")
    Mirror(domain, "vda", Path("/run/x/disk0.nbd"), "disk0").start()
    assert domain.calls == ["abort 0", "copy"]


def test_someone_elses_copy_is_left_alone() -> None:
    domain = Domain(socket="/run/backup.nbd")
    domain.refuse = libvirt.VIR_ERR_BLOCK_COPY_ACTIVE
    with pytest.raises(DiskError, match="cannot mirror disk vda") as caught:
        Mirror(domain, "vda", Path("/run/x/disk0.nbd"), "disk0").start()
    assert "another block job" in caught.value.hint
    assert domain.calls == ["copy"]


def test_stop_is_idempotent_and_never_pivots() -> None:
    domain = Domain(socket="/run/x/disk0.nbd")
    mirror = Mirror(domain, "vda", Path("/run/x/disk0.nbd"), "disk0")
    mirror.stop()
    mirror.stop()
    assert domain.calls == ["abort 0"]


def test_a_job_that_ends_by_itself_is_waited_for() -> None:
    domain = Domain(socket="/run/x/disk0.nbd")
    domain.ending = 2
    Mirror(domain, "vda", Path("/run/x/disk0.nbd"), "disk0").stop()
    assert (domain.socket, domain.calls) == ("", ["abort 0"] * 3)


def test_a_job_that_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remusdb.disk.mirror._ENDING_S", 0.01)
    domain = Domain(socket="/run/x/disk0.nbd")
    domain.ending = 1000
    with pytest.raises(DiskError, match="cannot end the mirror of vda") as caught:
        Mirror(domain, "vda", Path("/run/x/disk0.nbd"), "disk0").stop()
    assert "--abort" in caught.value.hint
    assert domain.socket


def test_progress_and_the_end() -> None:
    domain = Domain(socket="/run/x/disk0.nbd")
    mirror = Mirror(domain, "vda", Path("/run/x/disk0.nbd"), "disk0")
    assert mirror.progress() == (3, 7)
    mirror.stop()
    assert mirror.progress() == (0, 0)
    assert mirror.state().name == "gone"
    assert "vda" in mirror.state().reason
