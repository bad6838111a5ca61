# SPDX-License-Identifier: Apache-2.0
"""A file is the old one or the new one, whole, and nobody reads it before it may be read; a lock is one process's."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from remusdb.durable import alone, take_lock, write_file
from tests.waiting import LIMIT_S, eventually

HOLDER = """
import sys, time
from pathlib import Path
from remusdb.durable import take_lock
assert take_lock(Path(sys.argv[1]), 0) is not None
print("has it", flush=True)
time.sleep(600)
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("wanted", [0o600, 0o644, 0o755])
def test_a_file_has_its_content_and_its_mode_whatever_was_there(tmp_path: Path, wanted: int) -> None:
    path = tmp_path / "file"
    for content in (b"one", b"", b"another" * 10_000):
        write_file(path, content, wanted)
        assert (path.read_bytes(), mode(path)) == (content, wanted)
        path.chmod(0o777)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_was_half_written_before_is_not_shown_to_whom_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partial file of an earlier try may be anybody's to read: what is secret must not be written into it."""
    path, left = tmp_path / "key", tmp_path / "key.partial"
    left.write_text("left")
    left.chmod(0o666)
    readable: list[int] = []

    def fsync(fd: int) -> None:
        readable.append(os.fstat(fd).st_ino)

    inode = left.stat().st_ino
    with left.open() as reader:
        monkeypatch.setattr(os, "fsync", fsync)
        write_file(path, b"secret", 0o600)
        assert reader.read() == "left"
    assert readable[0] != inode and (path.read_bytes(), mode(path)) == (b"secret", 0o600)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_lock_is_one_processes_and_goes_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "has it\n"
        assert take_lock(lock, 0) is None
        with alone(lock, 0.05) as ours:
            assert not ours
        holder.kill()
    with alone(lock, LIMIT_S) as ours:
        assert ours and take_lock(lock, 0) is None
    again = take_lock(lock, 0)
    assert again is not None
    os.close(again)


@pytest.mark.parametrize("patience_s", [None, LIMIT_S])
def test_a_lock_is_waited_for(tmp_path: Path, patience_s: float | None) -> None:
    lock, had = tmp_path / "lock", threading.Event()
    first = take_lock(lock, 0)
    assert first is not None

    def wait() -> None:
        with alone(lock, patience_s) as ours:
            if ours:
                had.set()

    threading.Thread(target=wait, daemon=True).start()
    time.sleep(0.05)
    assert not had.is_set()
    os.close(first)
    eventually(had.is_set)


def test_a_lock_that_is_not_had_leaves_no_descriptor(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with alone(lock, 0):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            assert take_lock(lock, 0) is None
        assert len(os.listdir("/proc/self/fd")) == before
