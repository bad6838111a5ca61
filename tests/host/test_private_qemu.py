# SPDX-License-Identifier: Apache-2.0
"""The private QMP socket of a real QEMU."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remusdb.errors import VmError
from remusdb.vm.qmp import PrivateMonitor

LIMIT_S = 60.0
SOCKET = "qmp.sock"


def connected(folder: Path, pid: int) -> PrivateMonitor:
    """A connection, as soon as QEMU listens, or has seen that the one before it is gone."""
    end = time.monotonic() + LIMIT_S
    while True:
        try:
            return PrivateMonitor(folder / SOCKET, pid)
        except VmError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = ["qemu-system-x86_64", "-M", "none", "-display", "none"]
    with subprocess.Popen([*command, "-qmp", f"unix:{tmp_path / SOCKET},server=on,wait=off"]) as process:
        yield process
        process.kill()


@pytest.fixture
def monitor(tmp_path: Path, qemu: subprocess.Popen[bytes]) -> Iterator[PrivateMonitor]:
    monitor = connected(tmp_path, qemu.pid)
    yield monitor
    monitor.close()


def test_commands_and_the_events_they_make(monitor: PrivateMonitor) -> None:
    for _ in range(20):
        monitor.execute("stop", {})
        assert monitor.execute("query-status", {})["status"] == "paused"
        monitor.execute("cont", {})
        assert monitor.execute("query-status", {})["running"]


def test_a_long_reply_and_arguments(monitor: PrivateMonitor) -> None:
    assert len(monitor.execute("query-qmp-schema", {})) > 1000
    text = monitor.execute("human-monitor-command", {"command-line": "info ramblock"})
    assert text.startswith(" " * 14) or "Block Name" in text


def test_a_refusal_ends_nothing(monitor: PrivateMonitor) -> None:
    with pytest.raises(VmError, match="QEMU refuses no-such-command: The command no-such-command has not been found"):
        monitor.execute("no-such-command", {})
    assert monitor.execute("query-status", {})["running"]


def test_a_second_connection_is_not_waited_for_and_works_when_the_first_is_gone(
    tmp_path: Path, qemu: subprocess.Popen[bytes], monitor: PrivateMonitor
) -> None:
    with pytest.raises(VmError, match="does not answer"):
        PrivateMonitor(tmp_path / SOCKET, qemu.pid, 0.2)
    monitor.close()
    second = connected(tmp_path, qemu.pid)
    assert second.execute("query-status", {})["running"]
    second.close()


def test_the_end_of_qemu_is_an_error(qemu: subprocess.Popen[bytes], monitor: PrivateMonitor) -> None:
    qemu.kill()
    with pytest.raises(VmError, match="the private QMP socket failed"):
        monitor.execute("query-status", {})
