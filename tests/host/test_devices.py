# SPDX-License-Identifier: Apache-2.0
"""Block devices as replica disks: written, told as a base, never made again, and none that is in use. Needs root."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remusdb.core.blocks import hash_table
from remusdb.core.writes import RECORD, Kind
from remusdb.errors import DiskError
from remusdb_agents.backup.disks.images import ReplicaImages
from remusdb_agents.backup.standby.devices import Device
from tests.host.test_bases import Wire, told
from tools.lab import loops, sweep

MIB = 1 << 20
SIZE = 4 * MIB


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A block device of 6 MiB that has something on it, named by a link, as LVM does."""
    loop = loops.attach(tmp_path / "loops" / "device.img", 6)
    loop.write_bytes(os.urandom(6 * MIB))
    (tmp_path / "vg").mkdir()
    (tmp_path / "vg" / "db1").symlink_to(loop)
    try:
        yield tmp_path / "vg" / "db1"
    finally:
        loops.release(tmp_path / "loops")


def record(kind: Kind, offset: int, data: bytes = b"", length: int = 0) -> bytes:
    return RECORD.pack(kind, 0, 0, length or len(data), offset) + data


def test_a_device_is_written_and_never_made_anew(tmp_path: Path, device: Path) -> None:
    expected = bytearray(device.read_bytes())
    images = ReplicaImages(tmp_path / "vm", [SIZE, MIB], ["vda", "vdb"], {"vda": device})
    assert images.sources == [Device(device, SIZE, 6 * MIB), tmp_path / "vm" / "vdb.raw"]
    images.free_check([SIZE << 20, MIB])  # no file system has to have room for it
    for offset, data in ((0, b"a" * 513), (MIB + 7, b"b" * 5000), (SIZE - 3, b"end")):
        images.apply(record(Kind.WRITE, offset, data))
        expected[offset : offset + len(data)] = data
    for kind, offset, length in ((Kind.ZERO, 2 * MIB, MIB), (Kind.TRIM, 4096, 8192), (Kind.ZERO, 3 * MIB + 1, 700)):
        images.apply(record(kind, offset, length=length))
        expected[offset : offset + length] = bytes(length)
    with pytest.raises(DiskError, match="beyond its end"):
        images.apply(record(Kind.WRITE, SIZE - 1, b"xx"))
    images.remove()
    assert device.read_bytes() == bytes(expected) and not (tmp_path / "vm").exists()
    for _ in range(2):
        ReplicaImages(tmp_path / "vm", [SIZE], ["vda"], {"vda": device}).keep()
    assert device.read_bytes() == bytes(expected)


def test_what_is_on_a_device_is_told(tmp_path: Path, device: Path) -> None:
    images = ReplicaImages(tmp_path / "vm", [SIZE], ["vda"], {"vda": device})
    wire: Any = Wire()
    bases = told(images, {}, wire)
    assert images.reused == [True] and bases.counts == [SIZE // (64 << 10)]
    assert wire.table(0) == hash_table(device.read_bytes()[:SIZE], bases.seed)
    images.close()


def test_a_device_that_will_not_do_is_refused(tmp_path: Path, device: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(SIZE))
    for path, size, why in (
        (device, 6 * MIB + 512, "has 6291456 bytes, the VM's disk 6291968"),
        (tmp_path / "file", SIZE, "no block device"),
        (tmp_path / "nothing", SIZE, "No such file"),
        (Path("/dev/zero"), SIZE, "no block device"),
    ):
        with pytest.raises(DiskError, match=why) as caught:
            ReplicaImages(tmp_path / "vm", [size], ["vda"], {"vda": path})
        assert "agent.toml" in caught.value.hint
    first = ReplicaImages(tmp_path / "vm", [SIZE], ["vda"], {"vda": device})
    with pytest.raises(DiskError, match="mounted, or part of something else"):
        ReplicaImages(tmp_path / "other", [SIZE], ["vda"], {"vda": device})
    first.close()


def test_a_device_that_another_vm_uses_is_refused(tmp_path: Path, device: Path) -> None:
    """QEMU does not open its disks for itself alone; its locks tell."""
    command = ["qemu-io", "-f", "raw", "-c", "sleep 20000", str(device)]
    qemu = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def take_while_it_can_be_had() -> None:
        for _ in range(200):
            ReplicaImages(tmp_path / "vm", [SIZE], ["vda"], {"vda": device}).close()
            time.sleep(0.05)

    try:
        with pytest.raises(DiskError, match="in use by a QEMU"):
            take_while_it_can_be_had()
    finally:
        qemu.kill()
        qemu.wait()
    ReplicaImages(tmp_path / "vm", [SIZE], ["vda"], {"vda": device}).close()


def test_a_lab_that_was_killed_leaves_no_device() -> None:
    """Its owner is gone, and nobody else knows of the device: it is found by the folder that its file is in."""
    lab_id = secrets.token_hex(4)
    folder = sweep.claim(lab_id)
    state = json.loads((folder / "state.json").read_text())
    loop = loops.attach(Path(state["folder"]) / "disk.img", 1)
    (folder / "state.json").write_text(json.dumps(state | {"started": "long ago"}))
    assert lab_id in sweep.sweep()
    attached = subprocess.run(["losetup", "-nO", "BACK-FILE", loop], capture_output=True, text=True, check=False)
    assert state["folder"] not in attached.stdout and not Path(state["folder"]).exists()
