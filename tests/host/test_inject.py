# SPDX-License-Identifier: Apache-2.0
"""A system call put into a running process, while others stop it, continue it and signal it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remusdb.capture import inject
from remusdb.capture.inject import userfaultfd_of
from remusdb.errors import VmError

CALLS = 300
# Waits like QEMU's main loop; a second thread works; each SIGUSR1 is counted in the file that it was given.
PROCESS = """
import os, select, signal, sys, threading
count = 0
def seen(*_):
    global count
    count += 1
    os.pwrite(1, str(count).encode(), 0)
signal.signal(signal.SIGUSR1, seen)
threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
read, write = os.pipe()
os.pwrite(1, b"0", 0)
while True:
    select.select([read], [], [], 0.05)
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (tmp_path / "count").open("wb") as out:
        started = subprocess.Popen([sys.executable, "-c", PROCESS], stdout=out)
    while not (tmp_path / "count").read_bytes():
        time.sleep(0.01)
    yield started
    started.kill()
    started.wait()


def descriptors(pid: int) -> set[str]:
    return set(os.listdir(f"/proc/{pid}/fd"))


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def take(pid: int) -> None:
    fd = userfaultfd_of(pid)
    try:
        assert os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[userfaultfd]"
    finally:
        os.close(fd)


def test_signals_do_not_disturb_it(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    pid, before, over = process.pid, descriptors(process.pid), threading.Event()
    chance = random.Random(1)

    def disturb() -> None:
        while not over.is_set():
            os.kill(pid, chance.choice((signal.SIGSTOP, signal.SIGCONT, signal.SIGUSR1)))
            time.sleep(chance.random() * 0.0005)

    other = threading.Thread(target=disturb)
    other.start()
    try:
        for _ in range(CALLS):
            take(pid)
    finally:
        over.set()
        other.join()
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.2)
    assert process.poll() is None and state(pid) in "SR"
    assert descriptors(pid) == before
    count = int((tmp_path / "count").read_bytes())
    os.kill(pid, signal.SIGUSR1)
    time.sleep(0.3)
    assert int((tmp_path / "count").read_bytes()) == count + 1, "it does not hear signals as before"


def test_another_descriptor_is_not_taken_for_it(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which descriptor it is, is the process's own word: root must not go on with whatever it is given."""
    monkeypatch.setattr(inject, "call", lambda *_args: 0)
    before = descriptors(os.getpid())
    with pytest.raises(VmError, match="instead of a userfaultfd"):
        userfaultfd_of(process.pid)
    assert descriptors(os.getpid()) == before


def test_a_stopped_process_stays_stopped(process: subprocess.Popen[bytes]) -> None:
    pid, before = process.pid, descriptors(process.pid)
    os.kill(pid, signal.SIGSTOP)
    take(pid)
    time.sleep(0.1)
    assert state(pid) == "T"
    os.kill(pid, signal.SIGCONT)
    time.sleep(0.1)
    assert state(pid) in "SR" and descriptors(pid) == before
