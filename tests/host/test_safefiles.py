# SPDX-License-Identifier: Apache-2.0
"""Root's files in a folder of QEMU's user: whatever that user puts there, root gives nothing away and follows no link.

The other user here is 65534, in a process of its own.
"""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remusdb import safefiles
from remusdb.capture.fifo import NAME, StateFifo
from remusdb.errors import ConfigError, DiskError, VmError
from remusdb_agents.backup.disks.images import ReplicaImages

OTHER = 65534
RACE_S = 8.0
SWAPPER = """
import os, sys
name, target = sys.argv[1:]
print("ready", flush=True)
while True:
    try:
        os.unlink(name)
        os.symlink(target, name)
    except OSError:
        pass
"""
LISTENER = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
print("ready", flush=True)
sock.accept()[0].recv(1)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the other user, which that user can reach."""
    for part in (tmp_path, *tmp_path.parents):
        if part == tmp_path or part.name.startswith(("pytest-", "popen-")):  # pytest's own: two, or three side by side
            part.chmod(0o711)
    theirs = tmp_path / "domain-1-pg"
    theirs.mkdir()
    os.chown(theirs, OTHER, OTHER)
    return theirs


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of root's."""
    file = tmp_path / "secret"
    file.write_text("root's")
    file.chmod(0o600)
    return file


class NoGuard:
    """In place of the guard process, which is not what is tested here."""

    def __init__(self, *_args: object, **_more: object) -> None:
        self.stdin = None

    def wait(self, _timeout_s: float) -> None:
        pass


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", NoGuard)
        yield


def test_a_racing_user_gets_no_file_of_roots(folder: Path, secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["/usr/bin/python3", "-I", "-c", SWAPPER, str(folder / NAME), str(secret)]
    with subprocess.Popen(command, user=OTHER, group=OTHER, extra_groups=[], stdout=subprocess.PIPE) as racing:
        assert racing.stdout is not None and racing.stdout.readline() == b"ready\n"
        monkeypatch.setattr(subprocess, "Popen", NoGuard)
        made = refused = 0
        end = time.monotonic() + RACE_S
        try:
            while time.monotonic() < end and secret.stat().st_uid == 0:
                try:
                    StateFifo(folder, OTHER, OTHER).close()
                    made += 1
                except (VmError, OSError):
                    refused += 1
        finally:
            racing.kill()
    assert secret.stat().st_uid == 0, f"it was given away at the {made + refused}th FIFO"
    assert refused, "nobody raced"


def test_what_takes_the_fifos_place_at_once_is_not_given_away(
    folder: Path, secret: Path, unguarded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race, won for certain: a link, a file, a FIFO with another name too."""
    make = os.mkfifo

    def swapped(put: str) -> None:
        def mkfifo(path: Any, *args: Any, **more: Any) -> None:
            make(path, *args, **more)
            (folder / NAME).unlink()
            if put == "link":
                (folder / NAME).symlink_to(secret)
            elif put == "file":
                os.link(secret, folder / NAME)
            else:
                make(folder.parent / "roots")
                os.link(folder.parent / "roots", folder / NAME)

        monkeypatch.setattr(os, "mkfifo", mkfifo)

    for put in ("link", "file", "fifo"):
        swapped(put)
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(VmError, match="somebody else"):
            StateFifo(folder, OTHER, OTHER)
        assert len(os.listdir("/proc/self/fd")) == before
        assert secret.stat().st_uid == 0
    assert (folder.parent / "roots").stat().st_uid == 0


def test_the_fifo_that_is_read_is_the_one_that_was_made(folder: Path, secret: Path, unguarded: None) -> None:
    fifo = StateFifo(folder, OTHER, OTHER)
    found = os.stat(folder / NAME)
    assert stat.S_ISFIFO(found.st_mode) and (found.st_uid, found.st_mode & 0o777) == (OTHER, 0o600)
    (folder / NAME).unlink()
    (folder / NAME).symlink_to(secret)
    fd = fifo.open()
    assert stat.S_ISFIFO(os.fstat(fd).st_mode), "root opened what somebody else named"
    os.close(fd)
    fifo.close()
    assert secret.read_text() == "root's" and not (folder / NAME).exists()


def test_a_link_is_followed_only_where_root_alone_could_make_it(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "up").symlink_to("real/../link/below")
    for path, real in (("link/below", "real/below"), ("up", "real/below"), ("real", "real")):
        fd = safefiles.open_folder(tmp_path / path)
        assert os.path.samestat(os.fstat(fd), (tmp_path / real).stat())
        os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    (folder / "away").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for bad in (folder / "away", folder / "away" / "real", tmp_path / "loop", tmp_path / "file", tmp_path / "no"):
        with pytest.raises(OSError, match=r"\[Errno|others may"):
            safefiles.open_folder(bad)
    with pytest.raises(VmError, match="others may have made"), safefiles.folder_of(folder / "away"):
        pass
    folder.parent.chmod(0o777)
    with pytest.raises(OSError, match="others may have made"):
        safefiles.open_folder(tmp_path / "link")
    assert len(os.listdir("/proc/self/fd")) == before


def test_only_qemus_own_socket_is_spoken_to(folder: Path) -> None:
    """A link to a socket of root's, and a socket of another process."""
    roots = folder.parent / "root.sock"
    with subprocess.Popen([sys.executable, "-I", "-c", LISTENER, str(roots)], stdout=subprocess.PIPE) as qemu:
        assert qemu.stdout is not None and qemu.stdout.readline() == b"ready\n"
        (folder / "load").symlink_to(roots)
        os.link(roots, folder / "own")
        fd = safefiles.open_folder(folder)
        for name, pid, right in (("load", qemu.pid, False), ("own", qemu.pid + 1, False), ("own", qemu.pid, True)):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(20)
                if right:
                    safefiles.connect(sock, fd, name, pid)
                else:
                    with pytest.raises((OSError, VmError)):
                        safefiles.connect(sock, fd, name, pid)
        os.close(fd)
        qemu.kill()


def test_a_folder_for_qemu_lets_it_pass_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        safefiles.make_folder(tmp_path / "a" / "b", 0o711)
    finally:
        os.umask(umask)
    (tmp_path / "there").mkdir(mode=0o700)
    safefiles.make_folder(tmp_path / "there", 0o711)
    modes = {name: (tmp_path / name).stat().st_mode & 0o7777 for name in ("a", "a/b", "there")}
    assert modes == {"a": 0o711, "a/b": 0o711, "there": 0o700}


def test_root_works_in_no_folder_that_others_may_write(tmp_path: Path, folder: Path) -> None:
    safefiles.require_only_ours(tmp_path, "state_dir")
    safefiles.require_only_ours(tmp_path / "not yet", "state_dir")
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide").chmod(0o775)
    for path in (folder, tmp_path / "wide"):
        with pytest.raises(ConfigError, match="image_dir"):
            safefiles.require_only_ours(path, "image_dir")
        with pytest.raises(PermissionError, match="users other than root"):
            safefiles.make_folder(path)
        with pytest.raises(DiskError, match="users other than root"):
            ReplicaImages(path, [512], ["vda"])
        assert list(path.iterdir()) == []
