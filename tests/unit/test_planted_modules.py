# SPDX-License-Identifier: Apache-2.0
"""A daemon that was started by hand in somebody's folder runs no module that lies there, in none of its processes."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from remusdb.capture.fifo import StateFifo
from remusdb.errors import GateError
from remusdb.host.outside import WORKER_ARGV
from remusdb.net.gatechild import GateChild

ROOT = Path(__file__).parents[2]
MODULES = ("remusdb/__init__", "contextlib", "select", "socket", "mmap", "struct", "msgspec", "argparse", "logging")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that we are in, full of modules that tell when they are run."""
    folder = tmp_path / "somebodys"
    (folder / "remusdb").mkdir(parents=True)
    for name in MODULES:
        (folder / f"{name}.py").write_text("open(__file__ + '.ran', 'w').close()\nraise SystemExit(3)\n")
    monkeypatch.chdir(folder)
    return folder


def ran(planted: Path) -> list[str]:
    return [path.name for path in planted.rglob("*.ran")]


def test_the_guard(planted: Path, tmp_path: Path) -> None:
    fifo = StateFifo(tmp_path, os.getuid(), os.getgid())
    fifo.close()
    assert fifo._guard.wait(20) == 0 and ran(planted) == []


def test_a_worker(planted: Path) -> None:
    done = subprocess.run(WORKER_ARGV, capture_output=True, text=True, timeout=60, check=False)
    assert "IndexError" in done.stderr and ran(planted) == [], "it misses its arguments, and nothing else"


def test_a_gate_process(planted: Path) -> None:
    mine, theirs = socket.socketpair()
    with mine, contextlib.suppress(GateError):
        GateChild("tap0", os.dup(theirs.fileno()), theirs, 1 << 20, closed=True).end()
    assert ran(planted) == []


def test_none_is_started_without_it() -> None:
    """-P, also for a process that is made tomorrow."""
    for file in (*(ROOT / "remusdb").rglob("*.py"), *(ROOT / "agents").rglob("*.py")):
        for line in file.read_text().splitlines():
            assert not re.search(r'sys\.executable, (?!"-[PI]")', line), f"{file}: {line.strip()}"
