# SPDX-License-Identifier: Apache-2.0
"""Quarantined disks as the start of a replica: with the system's own qemu-img, and two ends of a stream."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from remusdb.core.blocks import BLOCK_BYTES, HASH_BYTES, hash_table
from remusdb.core.messages import Base, unpack
from remusdb.core.wire import FrameType
from remusdb.core.writes import RECORD, Kind
from remusdb.errors import DiskError, PeerUnreachable
from remusdb_agents.backup.disks import block_hashes as bases_module
from remusdb_agents.backup.disks.base_copy import QuarantinedDisk, fill, fits
from remusdb_agents.backup.disks.block_hashes import FRAME_BLOCKS, Bases
from remusdb_agents.backup.disks.images import ReplicaImages

SIZE = 40 << 20
PLENTY = 1 << 40


class Wire:
    """A primary that hears the tables; `stuck`: one that does not read."""

    def __init__(self, stuck: bool = False) -> None:
        self.heard: list[Base] = []
        self._closed = threading.Event()
        self._stuck = stuck

    def send(self, kind: FrameType, term: int, epoch: int, payload: bytes) -> None:
        assert (kind, term, epoch) == (FrameType.BASE, 3, 0)
        if self._stuck:
            self._closed.wait(20)
            raise PeerUnreachable("closed")
        self.heard.append(unpack(Base, payload))

    def close(self, drain_s: float = 0.0) -> None:
        self._closed.set()

    def table(self, disk: int) -> bytes:
        """The hashes of one disk, which must have come in order."""
        found = b""
        for part in (part for part in self.heard if part.disk == disk):
            assert part.first * HASH_BYTES == len(found)
            found += part.hashes
        return found


def written(path: Path, size: int = SIZE) -> bytes:
    """A sparse file with data here and there, some of it not aligned; its bytes."""
    with path.open("wb") as file:
        for at in (0, 5 << 20, size // 2 + 777, size - 9000):
            file.seek(at)
            file.write(os.urandom(9000))
        file.truncate(size)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vm").mkdir()
    return tmp_path / "vm"


def told(images: ReplicaImages, kept: dict[int, QuarantinedDisk], wire: Any) -> Bases:
    """Everything was told, and nothing went wrong."""
    broken: list[Exception] = []
    bases = Bases(images, kept, broken.append)
    bases.tell(wire, 3, [])
    assert bases._thread is not None
    bases._thread.join(30)
    assert broken == [] and not images.spoiled
    return bases


def as_qcow2(raw: Path, *options: str) -> Path:
    path = raw.with_suffix(".qcow2")
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", *options, str(raw), str(path)], check=True)
    return path


def test_an_image_that_is_there_is_told_as_it_is(folder: Path) -> None:
    size = (2 * FRAME_BLOCKS + 3) * BLOCK_BYTES + 512
    data = written(folder / "vdb.raw", size)
    images = ReplicaImages(folder, [SIZE, size], ["vda", "vdb"])
    assert images.reused == [False, True]
    wire = Wire()
    bases = told(images, {}, wire)
    assert bases.counts == [0, 2 * FRAME_BLOCKS + 4]
    assert wire.table(0) == b"" and wire.table(1) == hash_table(data, bases.seed)
    assert images.paths[1].read_bytes() == data


@pytest.mark.parametrize("kind", ["raw", "qcow2", "compressed"])
def test_a_kept_disk_is_copied_and_left_alone(folder: Path, tmp_path: Path, kind: str) -> None:
    kept = tmp_path / "aside"
    data = written(kept)
    if kind != "raw":
        kept = as_qcow2(kept, *(["-c"] if kind == "compressed" else []))
    before = kept.read_bytes()
    images = ReplicaImages(folder, [SIZE], ["vda"])
    wire = Wire()
    bases = told(images, {0: QuarantinedDisk(kept, "raw" if kind == "raw" else "qcow2")}, wire)
    assert images.paths[0].read_bytes() == data and kept.read_bytes() == before
    assert wire.table(0) == hash_table(data, bases.seed)
    assert images.paths[0].stat().st_blocks * 512 < 1 << 20, "holes were filled"
    images.apply(RECORD.pack(Kind.WRITE, 0, 0, 4, 100) + b"next")
    assert kept.read_bytes() == before


def test_an_image_that_is_there_goes_before_a_kept_disk(folder: Path, tmp_path: Path) -> None:
    data = written(folder / "vda.raw")
    written(tmp_path / "aside")
    told(ReplicaImages(folder, [SIZE], ["vda"]), {0: QuarantinedDisk(tmp_path / "aside", "raw")}, Wire())
    assert (folder / "vda.raw").read_bytes() == data


def test_what_does_not_stand_on_its_own_is_no_base(tmp_path: Path) -> None:
    """Another size, another format, a file that names others (which a guest could have written), no file at all."""
    raw = tmp_path / "disk.raw"
    written(raw)
    qcow2 = as_qcow2(raw)
    assert fits(QuarantinedDisk(raw, "raw"), SIZE) and fits(QuarantinedDisk(qcow2, "qcow2"), SIZE)
    assert not fits(QuarantinedDisk(raw, "raw"), SIZE + 512) and not fits(QuarantinedDisk(qcow2, "qcow2"), SIZE + 512)
    over = tmp_path / "over.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", over], check=True)
    apart = tmp_path / "apart.qcow2"
    options = f"data_file={tmp_path}/data"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, apart, str(SIZE)], check=True)
    vmdk = tmp_path / "disk.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", vmdk, str(SIZE)], check=True)
    for path in (over, apart, vmdk, tmp_path, tmp_path / "nothing", Path("/dev/zero")):
        for kind in ("raw", "qcow2", "vmdk", ""):
            assert not fits(QuarantinedDisk(path, kind), SIZE), (path, kind)


def test_a_raw_disk_is_not_what_its_guest_wrote_into_it(folder: Path, tmp_path: Path) -> None:
    """A guest may write the header of a qcow2 that names any file: its disk is raw, as its definition says."""
    aside = tmp_path / "aside"
    aside.write_bytes(bytes(SIZE))
    inner = tmp_path / "inner.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", inner, str(SIZE)], check=True)
    with aside.open("r+b") as file:
        file.write(inner.read_bytes())
    images = ReplicaImages(folder, [SIZE], ["vda"])
    told(images, {0: QuarantinedDisk(aside, "raw")}, Wire())
    assert images.paths[0].read_bytes() == aside.read_bytes()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_copy_without_room_starts_empty(folder: Path, tmp_path: Path, kind: str) -> None:
    kept = tmp_path / "aside"
    written(kept)
    if kind == "qcow2":
        kept = as_qcow2(kept)
    images = ReplicaImages(folder, [SIZE], ["vda"])
    fill(images.paths[0], SIZE, QuarantinedDisk(kept, kind), 4096, threading.Event())
    assert images.paths[0].read_bytes() == bytes(SIZE) and images.paths[0].stat().st_blocks == 0


def test_a_damaged_disk_starts_empty(folder: Path, tmp_path: Path) -> None:
    written(tmp_path / "aside")
    kept = as_qcow2(tmp_path / "aside")
    os.truncate(kept, kept.stat().st_size // 2)
    images = ReplicaImages(folder, [SIZE], ["vda"])
    fill(images.paths[0], SIZE, QuarantinedDisk(kept, "qcow2"), PLENTY, threading.Event())
    assert images.paths[0].read_bytes() == bytes(SIZE)
    images.keep()
    assert not folder.exists(), "an empty image is kept"


def test_an_image_that_cannot_be_read_ends_the_session_and_is_no_base(folder: Path) -> None:
    written(folder / "vda.raw")
    images = ReplicaImages(folder, [SIZE], ["vda"])
    os.dup2(os.open(folder, os.O_RDONLY), images._files[0])  # stands for a read error
    broken: list[Exception] = []
    bases = Bases(images, {}, broken.append)
    wire: Any = Wire()
    bases.tell(wire, 3, [])
    assert bases._thread is not None
    bases._thread.join(10)
    assert [type(exc) for exc in broken] == [DiskError] and images.spoiled
    images.keep()
    assert not folder.exists()


def test_closing_does_not_wait_for_a_primary_that_does_not_read(folder: Path) -> None:
    written(folder / "vda.raw")
    images = ReplicaImages(folder, [SIZE], ["vda"])
    bases = Bases(images, {}, lambda exc: pytest.fail(str(exc)))
    wire: Any = Wire(stuck=True)
    bases.tell(wire, 3, [])
    began = time.monotonic()
    bases.close()
    bases.close()
    assert time.monotonic() - began < 10
    assert not images.spoiled


def test_a_lost_connection_is_told_what_it_lacks_and_no_more(folder: Path) -> None:
    """The last that was sent may be lost; the first disk's tail with it."""
    size = (2 * FRAME_BLOCKS + 4) * BLOCK_BYTES
    for name in ("vda", "vdb"):
        with (folder / f"{name}.raw").open("wb") as file:
            file.write(os.urandom(1 << 20))
            file.truncate(size)
    images = ReplicaImages(folder, [size, size], ["vda", "vdb"])
    bases = Bases(images, {}, lambda exc: pytest.fail(str(exc)))
    stuck: Any = Wire(stuck=True)
    bases.tell(stuck, 3, [])
    stuck.close()
    wire: Any = Wire()
    bases.tell(wire, 3, [FRAME_BLOCKS, 0])
    assert bases._thread is not None
    bases._thread.join(30)
    assert wire.heard[0].disk == 0 and wire.heard[0].first == FRAME_BLOCKS
    assert wire.table(1) == hash_table((folder / "vdb.raw").read_bytes(), bases.seed)
    late: Any = Wire()
    bases.tell(late, 3, [2 * FRAME_BLOCKS + 4, 2 * FRAME_BLOCKS])
    bases._thread.join(30)
    assert [(part.disk, part.first) for part in late.heard] == [(1, 2 * FRAME_BLOCKS)]
    done: Any = Wire()
    bases.tell(done, 3, bases.counts)
    assert done.heard == []
    bases.close()


def test_room_counts_what_the_images_take(folder: Path) -> None:
    written(folder / "vda.raw")
    images = ReplicaImages(folder, [SIZE], ["vda"])
    free, taken = images.room(), images.paths[0].stat().st_blocks * 512
    images.free_check([free + taken - (8 << 20)])
    with pytest.raises(DiskError, match="not enough room"):
        images.free_check([free + taken + (64 << 20)])


def test_what_a_kept_disks_header_names_is_not_opened(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had QEMU's rights wrote it, and root would open it: so no program that opens it is started at all."""
    secret = tmp_path / "secret"
    written(secret)
    disk = tmp_path / "disk.qcow2"
    headers = (
        ["-b", str(secret), "-F", "raw"],
        ["-o", f"data_file={tmp_path}/data,data_file_raw=on", str(SIZE)],
        ["--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s", str(SIZE)],
    )
    made = []
    for number, options in enumerate(headers):
        path = tmp_path / f"{number}.qcow2"
        size = options[-1:] if options[-1] == str(SIZE) else []
        before = options[: len(options) - len(size)]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *before, path, *size], check=True)
        made.append(path)
    corrupt = as_qcow2(secret).read_bytes()
    disk.write_bytes(corrupt[:72] + (2).to_bytes(8) + corrupt[80:])

    def started(*_args: object, **_more: object) -> None:
        raise AssertionError("a program was started on it")

    monkeypatch.setattr(subprocess, "Popen", started)
    for path in (*made, disk):
        assert not fits(QuarantinedDisk(path, "qcow2"), SIZE)
    assert fits(QuarantinedDisk(tmp_path / "secret.qcow2", "qcow2"), SIZE)


@pytest.mark.parametrize("version", ["0.10", "1.1"])
def test_a_header_that_is_changed_after_the_look_leads_nowhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    secret, disk = tmp_path / "secret", tmp_path / "disk.qcow2"
    data = written(secret)
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compat={version}"]
    subprocess.run([*create, "-b", secret, "-F", "raw", disk], check=True)
    monkeypatch.setattr(bases_module, "fits", lambda *_args: True)
    images = ReplicaImages(folder, [SIZE], ["vda"])
    told(images, {0: QuarantinedDisk(disk, "qcow2")}, Wire())
    assert images.paths[0].read_bytes() == bytes(SIZE) != data


def test_a_kept_disk_is_reached_by_no_link_of_anybody_else(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    written(ours / "disk")
    (theirs / "way").symlink_to(ours)
    (theirs / "disk").symlink_to(ours / "disk")
    (tmp_path / "way").symlink_to(ours)
    assert fits(QuarantinedDisk(tmp_path / "way" / "disk", "raw"), SIZE)
    os.chown(theirs, 65534, 65534)
    for path in (theirs / "way" / "disk", theirs / "disk"):
        assert not fits(QuarantinedDisk(path, "raw"), SIZE), "QEMU's user chose what root copies"
