# SPDX-License-Identifier: Apache-2.0
"""What all unit tests start from, and those of the host daemon."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from remusdb.config import Host, HostConfig, Peer, Protection
from tests.unit.host_daemon_rig import Running


@pytest.fixture(scope="session", autouse=True)
def umask() -> Iterator[None]:
    """root's: with that of a user on Debian, 002, folders are writable for a group, and no daemon works in such."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A folder for sockets, whose paths may have 107 bytes: `tmp_path` has the test's and the user's names in it."""
    with tempfile.TemporaryDirectory(prefix="remusdb-", dir="/tmp") as name:
        yield Path(name) / "run"


@pytest.fixture
def config(tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> HostConfig:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("REMUSDB_TESTER", str(os.getpid()))  # a fake worker that was left behind ends with it
    return HostConfig(
        host=Host(name="alpha", run_dir=run_dir, state_dir=tmp_path / "state"),
        peers={"beta": Peer(address="192.0.2.2"), "gamma": Peer(address="192.0.2.3")},
        vms={"db1": Protection(epoch_ms=25)},
    )


@pytest.fixture
def daemon(config: HostConfig) -> Iterator[Running]:
    running = Running(config)
    yield running
    running.daemon.stop()
