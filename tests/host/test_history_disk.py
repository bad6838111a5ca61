# SPDX-License-Identifier: Apache-2.0
"""The history on a disk that is full: lines are lost, nothing else is. Needs root, for a small file system."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remusdb.history import Event, History, read
from remusdb.hooks import Hooks


def event(term: int) -> Event:
    return Event(
        vm="db1", at_ns=time.time_ns(), host="alpha", by="agent", event="takeover", was="ready", now="deciding",
        reason="x" * 3000, term=term, epoch=None, heard_ms_ago=None, peer="beta",
    )  # fmt: skip


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", str(folder)], check=True, timeout=20)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=20)


def test_a_full_disk_costs_lines_and_nothing_else(
    small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = tmp_path / "hooks.d"
    hooks.mkdir(mode=0o755)
    hook = hooks / "count"
    hook.write_text(f"#!/bin/sh\necho >> {tmp_path}/told\n")
    hook.chmod(0o755)
    history = History(small_disk, Hooks(hooks))
    history.record(event(0))
    assert history.flush(20)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while file.write(b"x" * 4096) == 4096:
            pass
    assert os.statvfs(small_disk).f_bavail == 0
    for term in range(1, 6):
        begun = time.monotonic()
        history.record(event(term))
        assert time.monotonic() - begun < 0.5
    assert history.flush(20)
    assert "is missing in the history" in caplog.text
    assert (tmp_path / "told").read_bytes().count(b"\n") == 6, "hooks need no disk"
    before = [one.term for one in read(small_disk, "db1")]
    assert before[0] == 0 and 5 not in before

    ballast.unlink()
    history.record(event(6))
    assert history.flush(20)
    assert [one.term for one in read(small_disk, "db1")] == [*before, 6]
