# SPDX-License-Identifier: Apache-2.0
"""`remusdb export`: the disks of the last committed epoch as files, while protection goes on.

    files made, empty, as FILE.part ─▶ replica frozen for an instant: snapshot ─▶ copied ─▶ (converted) ─▶ FILE

Epochs are applied meanwhile (snapshot.py). A takeover, or the session's end, never waits for an export: it ends it.
What an agent that was killed left behind is FILE.part; no FILE is ever half of one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from remusdb.control import Progress, ProgressFn
from remusdb.control.api import Export, Exported, ExportedDisk
from remusdb.core.messages import Hello
from remusdb.errors import DiskError, RefusedForSafety
from remusdb.log import VmLog
from remusdb.safefiles import only_ours
from remusdb_agents.backup.applier import Applier
from remusdb_agents.backup.disks.images import ReplicaImages
from remusdb_agents.backup.disks.snapshot import Snapshot
from remusdb_agents.backup.rehearsal.run import Rehearsals

log = logging.getLogger(__name__)

PUT_BY_MAX_BYTES = 256 << 20  # old blocks in memory: 4096 of them; an export that needs more ends
BACKLOG_MAX_BYTES = 64 << 20  # of epochs that wait while the snapshot is made: nothing is read or written for that
SYNC_BYTES = 32 << 20  # so much at a time: the host's memory is not filled with what is still to be written
ZEROES = bytes(1 << 20)
SPARE_BYTES = 64 << 20  # what stays free where the files go
PLACE_HINT = (
    "the agent's unit keeps it out of /home, /root, /tmp, /usr and /etc: say a folder such as /var/backups or /srv"
)


@dataclass(frozen=True)
class Target:
    """One disk's file: what it will be called, and what it is called until it is whole."""

    disk: str
    path: Path
    size: int

    @property
    def part(self) -> Path:
        """Beside it, so that it only has to be renamed."""
        return self.path.with_name(f"{self.path.name}.part")


class Exports:
    """The exports of one session's replica, one at a time."""

    def __init__(self, hello: Hello, images: ReplicaImages, applier: Applier, rehearsals: Rehearsals) -> None:
        self._hello = hello
        self._images = images
        self._applier = applier
        self._rehearsals = rehearsals
        self._busy = threading.Lock()

    def run(self, asked: Export, term: int, progress: ProgressFn) -> Exported:
        """One export of the replica, which is of session `term`. DiskError, RefusedForSafety."""
        if not self._busy.acquire(blocking=False):
            raise RefusedForSafety(f"an export of {asked.vm} runs already", hint="wait for its end")
        try:
            return self._run(asked, term, progress)
        finally:
            self._busy.release()

    def _run(self, asked: Export, term: int, progress: ProgressFn) -> Exported:
        began = time.monotonic()
        targets = targets_of(Path(asked.to), [disk.target for disk in self._hello.disks], self._images.sizes)
        taken = self._images.taken()
        require_place(asked, targets, sum(taken))
        with contextlib.ExitStack() as undo:
            files = [undo.enter_context(_made(target)) for target in targets]
            epoch, frozen_ms, snapshot = self._snapshot()
            try:
                _copy(snapshot, files, sum(taken), progress)
            finally:
                self._images.end_snapshot("the export has ended")
            if asked.format == "qcow2":
                for target in targets:
                    progress(Progress(step=f"convert {target.disk} to qcow2"))
                    _convert(target)
            for target in targets:
                _finish(target)
            undo.pop_all().close()  # the files; nothing is left to be removed
        VmLog(log, asked.vm).info("exported epoch %d to %s", epoch, ", ".join(str(one.path) for one in targets))
        return Exported(
            vm=asked.vm,
            term=term,
            epoch=epoch,
            disks=[ExportedDisk(one.disk, str(one.path), one.size) for one in targets],
            took_ms=round((time.monotonic() - began) * 1000, 1),
            frozen_ms=round(frozen_ms, 1),
            put_by_bytes=snapshot.put_by_bytes,
        )

    def _snapshot(self) -> tuple[int, float, Snapshot]:
        """The epoch it is of, and how long the replica stood still for it, in ms."""
        with self._rehearsals.alone("export"), self._applier.freeze(BACKLOG_MAX_BYTES) as frozen:
            began = time.monotonic()
            snapshot = self._images.snapshot(PUT_BY_MAX_BYTES)
            return frozen.epoch, (time.monotonic() - began) * 1000, snapshot


def targets_of(to: Path, disks: Sequence[str], sizes: Sequence[int]) -> list[Target]:
    """A VM's only disk is FILE; of several, vda of /srv/db1.img is /srv/db1-vda.img."""
    if len(disks) == 1:
        return [Target(disks[0], to, sizes[0])]
    named = [to.with_name(f"{to.stem}-{disk}{to.suffix}") for disk in disks]
    return [Target(disk, path, size) for disk, path, size in zip(disks, named, sizes, strict=True)]


def require_place(asked: Export, targets: Sequence[Target], taken: int) -> None:
    """DiskError unless the files can be made there. `taken`: bytes that the replica's disks take."""
    folder = Path(asked.to).parent
    with explained(folder):
        found = os.stat(folder)
        if [found.st_dev, found.st_ino] != asked.folder:
            raise DiskError(f"the agent has another folder of its own at {folder}", hint=PLACE_HINT)
        if not only_ours(found):
            raise DiskError(f"others than root may write in {folder}", hint="say a folder that only root may write")
        for path in [path for target in targets for path in (target.path, target.part)]:
            if os.path.lexists(path):
                left = "an export that broke off left it, or one runs" if path.suffix == ".part" else ""
                raise DiskError(f"{path} exists already{left and f': {left}'}", hint="say another file, or remove it")
        stats = os.statvfs(folder)
    needed = taken * (2 if asked.format == "qcow2" else 1) + SPARE_BYTES
    if (free := stats.f_bavail * stats.f_frsize) < needed:
        twice = ", twice what the disks take: they are copied first, then converted" if asked.format == "qcow2" else ""
        raise DiskError(
            f"not enough room in {folder}: {needed} bytes needed{twice}; {free} free", hint="say another folder"
        )


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """OSError as DiskError, with what to do."""
    try:
        yield
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "free space there, or say another folder" if full else PLACE_HINT
        raise DiskError(f"{path}: {exc.strerror}", hint=hint) from exc


@contextlib.contextmanager
def _made(target: Target) -> Iterator[int]:
    """Its .part, new and empty, to write; it is removed if what follows fails."""
    with explained(target.part):
        fd = os.open(target.part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with explained(target.part):
            os.ftruncate(fd, target.size)
        yield fd
    except BaseException:
        for path in (target.part, _converted(target)):
            path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _copy(snapshot: Snapshot, files: Sequence[int], total: int, progress: ProgressFn) -> None:
    """All of it into the files, which are durable then. Zeroes are left out."""
    done = unsynced = 0
    progress(Progress(step="copy disks", done=0, total=total, unit="bytes"))
    while (piece := snapshot.next()) is not None:
        fd, at, data = files[piece.disk], piece.offset, piece.data
        done, unsynced = done + len(data), unsynced + len(data)
        with explained(Path("the exported file")):
            if data != ZEROES[: len(data)]:
                while data:
                    written = os.pwrite(fd, data, at)
                    data, at = data[written:], at + written
            if unsynced >= SYNC_BYTES:
                _flush(files)
                unsynced = 0
                progress(Progress(step="copy disks", done=min(done, total), total=total, unit="bytes"))
    with explained(Path("the exported file")):
        _flush(files)
    progress(Progress(step="copy disks", done=total, total=total, unit="bytes"))


def _flush(files: Sequence[int]) -> None:
    for fd in files:
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _converted(target: Target) -> Path:
    return target.part.with_suffix(".part2")


def _convert(target: Target) -> None:
    """Its .part as qcow2, in its place. qemu-img dies with this thread."""
    source = json.dumps({"driver": "raw", "file": {"driver": "file", "filename": str(target.part)}})
    command = ["setpriv", "--pdeathsig", "KILL", "qemu-img", "convert", "-O", "qcow2", "--", f"json:{source}"]
    try:
        done = subprocess.run([*command, str(_converted(target))], capture_output=True, text=True, check=False)
    except OSError as exc:
        raise DiskError(f"{target.disk} cannot be converted to qcow2: {exc}", hint="install qemu-utils") from exc
    if done.returncode:
        raise DiskError(f"{target.disk} cannot be converted to qcow2: {done.stderr.strip()}")
    with explained(target.path):
        _converted(target).replace(target.part)


def _finish(target: Target) -> None:
    """Give it its name, so that it has it also after a power cut. What has that name by now stays."""
    with explained(target.path):
        os.link(target.part, target.path, follow_symlinks=False)
        target.part.unlink()
        folder = os.open(target.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
