# SPDX-License-Identifier: Apache-2.0
"""The state FIFO: the writer (QEMU) is held while it must be, and free in every other case, above all when we die."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remusdb.capture import fifo as fifo_module
from remusdb.capture.fifo import MANY_STATES, PIPE_BYTES, Room, StateFifo, drain, held, wait_any
from remusdb.capture.kernel import F_SETPIPE_SZ
from remusdb.errors import VmError

F_GETPIPE_SZ = 1032  # linux/fcntl.h
STATE_BYTES = 150_000
WRITER = "import sys; f = open(sys.argv[1], 'wb', buffering=32768); f.write(bytes(int(sys.argv[2]))); f.close()"


def writer(path: Path, state_bytes: int = STATE_BYTES) -> subprocess.Popen[bytes]:
    """A process that saves its state the way QEMU does; a broken pipe is its own business."""
    command = [sys.executable, "-c", WRITER, str(path), str(state_bytes)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[StateFifo]:
    made = StateFifo(tmp_path, os.getuid(), os.getgid())
    yield made
    made.close()


def test_writer_is_held_until_it_is_read(fifo: StateFifo) -> None:
    fd, wake = fifo.open(), os.eventfd(0)
    with writer(fifo.path) as saver:
        assert wait_any((fd, wake), 10) == {fd}
        time.sleep(0.3)
        assert saver.poll() is None, "the state fits into the pipe: the VM would not be held"
        assert len(drain(fd, 10)) == STATE_BYTES
        assert saver.wait(10) == 0
    os.close(fd)
    os.close(wake)


def room_after(*states: int) -> Room:
    room = Room()
    for state in states:
        room.saw(state)
    return room


@pytest.mark.parametrize("read", [0, 40_000])
def test_there_is_never_so_much_room_that_half_of_the_shortest_state_fits(fifo: StateFifo, read: int) -> None:
    """Also when a part of it was read; and a few long states are no reason to believe that all are."""
    for shortest in (150_000, 131_072, 250_000, 1 << 20):
        room = room_after(*[190_000] * MANY_STATES, shortest, 1 << 20).bytes(read)
        state = min(shortest, 190_000) // 2 + 1
        assert room == PIPE_BYTES or room + read < state
        fd = fifo.open(room)
        with writer(fifo.path, max(state, read + PIPE_BYTES + 1)) as saver:
            assert wait_any((fd,), 10) == {fd}
            head = drain(fd, 10, read)
            time.sleep(0.1)
            assert saver.poll() is None and held(fd)
            assert len(head) == read and drain(fd, 10)
        os.close(fd)


def test_a_state_that_fitted_is_seen(fifo: StateFifo) -> None:
    """The VM ran meanwhile: what was taken is not of one instant."""
    fd = fifo.open(1 << 18)
    assert held(fd), "nobody has come yet"
    with writer(fifo.path, 150_000) as saver:
        saver.wait(10)
        assert not held(fd)
    os.close(fd)


def test_where_much_room_is_not_allowed_there_is_the_least(fifo: StateFifo, monkeypatch: pytest.MonkeyPatch) -> None:
    """`/proc/sys/fs/pipe-user-pages-soft`: a host with many VMs is no reason not to cut."""
    real = fcntl.fcntl

    def refuse(fd: int, command: int, size: int = 0) -> int:
        if command == F_SETPIPE_SZ and size > PIPE_BYTES:
            raise PermissionError("too many pages in pipes")
        return int(real(fd, command, size))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    fd = fifo.open(1 << 17)
    assert real(fd, F_GETPIPE_SZ) == PIPE_BYTES
    os.close(fd)


def test_room_is_a_power_of_two_and_bounded() -> None:
    assert room_after().bytes(0) == room_after(*[1 << 20] * (MANY_STATES - 1)).bytes(0) == PIPE_BYTES
    assert room_after(*[154_000] * MANY_STATES).bytes(0) == 64 << 10
    assert room_after(60_000, *[190_000] * MANY_STATES).bytes(0) == 16 << 10
    assert room_after(*[154_000] * MANY_STATES).bytes(150_000) == PIPE_BYTES
    assert room_after(*[1 << 30] * MANY_STATES).bytes(0) == 1 << 20


def test_nobody_writes(fifo: StateFifo) -> None:
    fd, wake = fifo.open(), os.eventfd(0)
    assert wait_any((fd, wake), 0.05) == set()
    os.eventfd_write(wake, 1)
    assert wait_any((fd, wake), 10) == {wake}
    os.close(fd)
    os.close(wake)


def test_reader_dies_in_the_middle(fifo: StateFifo) -> None:
    fd, wake = fifo.open(), os.eventfd(0)
    with writer(fifo.path) as saver:
        assert wait_any((fd, wake), 10) == {fd}
        os.close(fd)
        saver.wait(10)
    os.close(wake)


def test_a_device_state_without_an_end_is_given_up(fifo: StateFifo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU that is not itself any more could fill the worker's memory."""
    monkeypatch.setattr(fifo_module, "MAX_DEVICE_STATE_BYTES", STATE_BYTES // 2)
    fd = fifo.open()
    with writer(fifo.path) as saver:
        assert wait_any((fd,), 10) == {fd}
        with pytest.raises(VmError, match="does not come to an end"):
            drain(fd, 10)
        os.close(fd)
        saver.wait(10)


def test_a_save_that_comes_after_it_was_given_up(fifo: StateFifo) -> None:
    """One writer is in `open` already, another comes later: both go on."""
    with writer(fifo.path) as early:
        time.sleep(0.3)
        assert early.poll() is None
        fifo.abandon()
        with writer(fifo.path) as late:
            early.wait(10)
            late.wait(10)


def test_guard_frees_a_writer_when_the_worker_is_killed(tmp_path: Path) -> None:
    script = (
        "import os,sys,time; from pathlib import Path; from remusdb.capture.fifo import StateFifo;"
        "f = StateFifo(Path(sys.argv[1]), os.getuid(), os.getgid()); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == b"ready\n"
        time.sleep(0.5)  # the guard starts
        with writer(tmp_path / "remusdb-state") as saver:
            time.sleep(0.3)
            assert saver.poll() is None
            worker.send_signal(signal.SIGKILL)
            saver.wait(10)
