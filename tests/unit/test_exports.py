# SPDX-License-Identifier: Apache-2.0
"""`remusdb export` on the agent's side: whole files of one epoch, or none; refusals before anything is made."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from remusdb.control import Progress
from remusdb.control.api import Export, Exported
from remusdb.core.messages import Disk, Hello
from remusdb.core.writes import RECORD, Kind
from remusdb.errors import DiskError, NotProtected, RefusedForSafety, RemusError
from remusdb.names import VmName
from remusdb_agents.backup.applier import Frozen
from remusdb_agents.backup.catch_up import CatchUp
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.disks import exports as module
from remusdb_agents.backup.disks.exports import Exports, targets_of
from remusdb_agents.backup.disks.images import ReplicaImages
from remusdb_agents.backup.registry import Registry
from remusdb_agents.backup.replica import Replica
from tests.unit.test_registry import context

__all__ = ["context"]  # the fixture

SIZE = 1 << 20


class FakeApplier:
    """Stands still whenever it is asked to, at epoch 7."""

    @contextlib.contextmanager
    def freeze(self, _backlog: int) -> Iterator[Frozen]:
        yield Frozen(7, b"", CatchUp(), lambda: 0)


class FakeRehearsals:
    """None runs, or `busy`."""

    busy = False

    @contextlib.contextmanager
    def alone(self, _what: str) -> Iterator[None]:
        if self.busy:
            raise RefusedForSafety("a rehearsal of db1 runs already")
        yield


class Rig:
    """A replica with data, and its exports."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.images = ReplicaImages(folder / "images", [SIZE] * len(names), names)
        for disk in range(len(names)):
            self.write(disk, 4096, b"old " * 2048)
        disks = [Disk(name, SIZE, SIZE) for name in names]
        hello = Hello("0", "a", VmName("db1"), "uuid", 0, False, 0, "q35", "<domain/>", [], disks, 100, "10")
        self.rehearsals = FakeRehearsals()
        applier, rehearsals = cast(Any, FakeApplier()), cast(Any, self.rehearsals)
        self.exports = Exports(hello, self.images, applier, rehearsals)
        self.folder = folder / "to"
        self.folder.mkdir()
        self.meanwhile: Callable[[], object] = lambda: None

    def write(self, disk: int, at: int, data: bytes) -> None:
        self.images.apply(RECORD.pack(Kind.WRITE, disk, 0, len(data), at) + data)

    def export(self, name: str = "db1.img", **more: Any) -> Exported:
        found = self.folder.stat()
        known = {"to": str(self.folder / name), "folder": [found.st_dev, found.st_ino], **more}

        def told(progress: Progress) -> None:
            if progress.step == "copy disks" and not progress.done:
                self.meanwhile()

        return self.exports.run(Export(vm=VmName("db1"), **known), 3, told)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, ["vda"])


def test_raw_is_the_disk_at_the_epoch_whatever_is_applied_meanwhile(rig: Rig) -> None:
    wanted = rig.images.paths[0].read_bytes()
    rig.meanwhile = lambda: rig.write(0, 4096, b"new " * 2048)
    done = rig.export()
    file = rig.folder / "db1.img"
    assert file.read_bytes() == wanted != rig.images.paths[0].read_bytes()
    assert (done.epoch, done.term, [(one.disk, one.path) for one in done.disks]) == (7, 3, [("vda", str(file))])
    assert done.put_by_bytes > 0
    assert file.stat().st_mode & 0o777 == 0o600 and file.stat().st_blocks * 512 < SIZE // 2, "holes stay holes"
    assert os.listdir(rig.folder) == ["db1.img"]
    rig.export("again.img")


def test_qcow2(rig: Rig) -> None:
    wanted = rig.images.paths[0].read_bytes()
    rig.export("db1.qcow2", format="qcow2")
    file = rig.folder / "db1.qcow2"
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(file)], check=True)
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(file), str(file) + ".raw"], check=True)
    assert Path(f"{file}.raw").read_bytes() == wanted and len(os.listdir(rig.folder)) == 2


def test_several_disks_are_named_by_their_targets(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ["vda", "vdb"])
    done = rig.export("db1.img")
    assert [one.path for one in done.disks] == [str(rig.folder / "db1-vda.img"), str(rig.folder / "db1-vdb.img")]
    assert (rig.folder / "db1-vdb.img").read_bytes() == rig.images.paths[1].read_bytes()
    assert [one.path.name for one in targets_of(Path("/srv/db1"), ["vda", "vdb"], [1, 1])] == ["db1-vda", "db1-vdb"]


@pytest.mark.parametrize("there", ["db1.img", "db1.img.part"])
def test_a_file_that_is_there_stays(rig: Rig, there: str) -> None:
    (rig.folder / there).write_text("mine")
    with pytest.raises(DiskError, match="exists already"):
        rig.export()
    assert (rig.folder / there).read_text() == "mine" and os.listdir(rig.folder) == [there]


def test_no_room(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPARE_BYTES", 1 << 62)
    with pytest.raises(DiskError, match=r"not enough room in .*/to: \d+ bytes needed; \d+ free"):
        rig.export()
    assert os.listdir(rig.folder) == []


def test_a_folder_that_is_not_the_one_that_was_meant(rig: Rig) -> None:
    """/tmp of a unit with PrivateTmp."""
    with pytest.raises(DiskError, match="another folder") as error:
        rig.export(folder=[1, 1])
    assert "/var/backups" in error.value.hint


def test_a_folder_in_which_others_could_put_something_in_the_files_place(rig: Rig) -> None:
    rig.folder.chmod(0o777)
    with pytest.raises(DiskError, match="others than root may write"):
        rig.export()
    assert os.listdir(rig.folder) == []


def test_a_rehearsal_runs(rig: Rig) -> None:
    rig.rehearsals.busy = True
    with pytest.raises(RefusedForSafety, match="rehearsal"):
        rig.export()
    assert os.listdir(rig.folder) == []


def test_a_takeover_ends_it_and_nothing_is_left(rig: Rig) -> None:
    rig.meanwhile = lambda: rig.images.end_snapshot("this host takes the VM over")
    with pytest.raises(RefusedForSafety, match="takes the VM over"):
        rig.export()
    assert os.listdir(rig.folder) == []
    rig.meanwhile = lambda: None
    rig.export()


def test_one_at_a_time(rig: Rig) -> None:
    said: list[str] = []

    def again() -> None:
        with pytest.raises(RefusedForSafety) as error:
            rig.export("second.img")
        said.append(str(error.value))

    rig.meanwhile = again
    rig.export()
    assert said == ["an export of db1 runs already"]


def test_a_disk_that_runs_full_in_the_middle(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: bytes, _at: int) -> int:
        raise OSError(28, "No space left on device")

    def begin() -> None:
        monkeypatch.setattr(os, "pwrite", full)

    rig.meanwhile = begin
    with pytest.raises(RemusError, match="No space left"):
        rig.export()
    assert os.listdir(rig.folder) == []


def test_where_nothing_is_committed_there_is_nothing_to_export(context: Context, tmp_path: Path) -> None:
    found = tmp_path.stat()
    asked = Export(vm=VmName("db1"), to=str(tmp_path / "db1.img"), folder=[found.st_dev, found.st_ino])
    with pytest.raises(NotProtected, match="db1 cannot be exported here: there is no replica here"):
        Replica("db1", context).export(asked, lambda _: None)
    with pytest.raises(NotProtected, match="no replica of VM db9"), Registry(context).known("db9"):
        pass
    assert not (tmp_path / "db1.img").exists()
