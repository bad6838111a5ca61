# SPDX-License-Identifier: Apache-2.0
"""How long a VM's processors have run: threads with QEMU's names, in a process of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remusdb.vm.vcpus import Vcpus, most_s
from tests.waiting import eventually

# One thread works, one sleeps, and one that works is no processor. None waits for Python's lock: hashing lets go of it.
QEMU = """
import ctypes, hashlib, threading, time
data = bytes(1 << 26)
def run(name, work):
    ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)  # PR_SET_NAME
    while True:
        hashlib.sha256(data) if work else time.sleep(1)
for name, work in (("CPU 0/TCG", True), ("CPU 1/TCG", False), ("worker", True)):
    threading.Thread(target=run, args=(name, work), daemon=True).start()
time.sleep(0.2)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def qemu() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", QEMU], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


def test_processors_are_told_apart_by_their_threads(qemu: int) -> None:
    vcpus = Vcpus(qemu)
    try:
        before = vcpus.ran()
        time.sleep(0.5)
        after = vcpus.ran()
    finally:
        vcpus.close()
    assert len(before) == len(after) == 2
    grown = sorted(late - early for early, late in zip(before, after, strict=True))
    assert grown[0] < 10_000_000 < grown[1], "one of them slept"
    assert most_s(before, after) == grown[1] / 1e9


def test_a_processor_that_wants_to_run_is_seen_though_it_does_not_run(qemu: int) -> None:
    vcpus = Vcpus(qemu)
    try:
        assert vcpus.wanted()
        for task in Path(f"/proc/{qemu}/task").iterdir():  # behind all else on its core
            os.sched_setscheduler(int(task.name), os.SCHED_IDLE, os.sched_param(0))
        assert sum(vcpus.wanted() for _ in range(200)) > 180
        os.kill(qemu, signal.SIGSTOP)
        eventually(lambda: not vcpus.wanted())
    finally:
        vcpus.close()


def test_a_qemu_whose_threads_have_no_names_is_busy() -> None:
    vcpus = Vcpus(os.getpid())
    before = vcpus.ran()
    time.sleep(0.02)
    assert most_s(before, vcpus.ran()) >= 0.02


def test_a_qemu_that_ends_has_not_run(qemu: int) -> None:
    vcpus = Vcpus(qemu)
    before = vcpus.ran()
    os.kill(qemu, 9)
    os.waitid(os.P_PID, qemu, os.WEXITED | os.WNOWAIT)
    assert most_s(before, vcpus.ran()) < 0.5
    vcpus.close()
