# SPDX-License-Identifier: Apache-2.0
"""One stop after the other, of a QEMU that is a thread here: its state goes through the real FIFO."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remusdb.capture.fifo import MANY_STATES, StateFifo
from remusdb.capture.stops import Stops
from remusdb.errors import VmError
from remusdb.vm.blocking import BlockingCalls
from tests.waiting import eventually

LONG = 150_000


class Qemu:
    """What `Stops` needs of a VM."""

    def __init__(self, folder: Path) -> None:
        self.state_bytes = LONG
        self.ran_during_work = False
        self._stopped = False
        self.fifo = StateFifo(folder, os.getuid(), os.getgid())
        self.calls = BlockingCalls(10.0)
        self.pidfd = os.pidfd_open(os.getpid())
        domain = SimpleNamespace(
            calls=self.calls, pidfd=self.pidfd, name="db1", monitor="private", qmp_blocking=self._save
        )
        clock = SimpleNamespace(after_bytes=0, begin=lambda: None, repair=lambda _at: None, done=lambda _devices: None)
        self.stops = Stops(cast(Any, domain), self.fifo, cast(Any, SimpleNamespace(there=True)), cast(Any, clock), 10.0)

    def _save(self, _command: str, filename: str, live: bool) -> None:
        assert not live
        self._stopped = True
        with open(filename, "wb", buffering=32 << 10) as file:
            file.write(bytes(self.state_bytes - 6) + b"\x7e\0\0\0\0\0")
        self._stopped = False

    def stop(self, *, work_lasts: bool = False) -> bytes:
        """One stop; notes whether the VM ran before its work was done. `work_lasts`: until the VM runs again."""

        def work() -> None:
            if work_lasts:
                eventually(lambda: not self._stopped)
            self.ran_during_work = self.ran_during_work or not self._stopped

        return self.stops.at_stop(work, lambda _seconds: None).devices

    def close(self) -> None:
        self.stops.close()
        self.fifo.close()
        os.close(self.pidfd)


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Qemu]:
    made = Qemu(tmp_path)
    yield made
    made.close()


def test_the_whole_state_comes_and_qemu_waits_for_the_work(qemu: Qemu) -> None:
    for state_bytes in (LONG, 40_000, LONG, 1 << 20, 5_000):
        qemu.state_bytes = state_bytes
        assert len(qemu.stop()) == state_bytes
    assert not qemu.ran_during_work


def test_a_state_that_becomes_short_is_waited_for_as_well(qemu: Qemu) -> None:
    """An IDE disk's, when a transfer ends: by the length of the last one there would be room for all of it."""
    for state_bytes in [190_000, 60_000] * (MANY_STATES // 2 + 10):
        qemu.state_bytes = state_bytes
        assert len(qemu.stop()) == state_bytes
    assert not qemu.ran_during_work


def test_a_cut_that_qemu_did_not_wait_for_is_an_error(qemu: Qemu) -> None:
    for _ in range(MANY_STATES):
        qemu.stop()
    qemu.state_bytes = 40_000
    with pytest.raises(VmError, match="did not wait for this cut"):
        qemu.stop(work_lasts=True)
