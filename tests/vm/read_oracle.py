# SPDX-License-Identifier: Apache-2.0
"""Copies the memory of a running VM again and again as the initial sync does, and compares it byte for byte.

A program, for it must run where the VM does: `python -m tests.vm.read_oracle VM ROUNDS [live]`. Every few rounds the
VM is stopped for good, a last cut is taken as epoch 1 would be, and the replica must be the VM's memory. The result is
JSON on stdout. With `live` the pages are protected while the VM runs: the mistake that this must find.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque

import numpy as np
from numpy.typing import NDArray

from remusdb.capture.clock import GuestClock
from remusdb.capture.cut import Capture, DirtyBlock
from remusdb.capture.fifo import StateFifo
from remusdb.capture.memory import ProcessMemory
from remusdb.capture.pauses import PauseMeter, start_event_loop
from remusdb.capture.tracker import Pages, Span, Tracker
from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.domain import Domain
from remusdb.vm.libvirt_link import LibvirtLink
from remusdb.worker.memory_copy import MemoryCopy

CHECK_EVERY = 5  # rounds: a page that is read into once more heals what was lost before
QUIET_S = 0.1  # longer than any read takes
RUN_S = 0.02  # between two rounds, so that reads begin


class LiveCapture(Capture):
    """Protects without a stop, as must not be."""

    def protect(self, spans: deque[Span], waiting: object) -> Pages:
        return self._tracker.pages(self._tracker.protect(spans, float("inf")))


class Oracle:
    """A VM, what the product captures it with, and a replica."""

    def __init__(self, vm: str, live: bool) -> None:
        start_event_loop()
        calls = BlockingCalls(20)
        link = LibvirtLink("qemu:///system", calls)
        self.domain = Domain(link.connection, vm, calls)
        self.tracker = Tracker(self.domain.pid, self.domain.blocks(), kvm=self.domain.accel == "kvm")
        self.fifo = StateFifo(self.domain.state_folder(), os.getuid(), os.getgid())
        kind = LiveCapture if live else Capture
        clock = GuestClock(self.domain.pid, self.tracker.blocks, kvm=self.domain.accel == "kvm")
        self.capture = kind(self.domain, self.tracker, self.fifo, link, clock, 20)
        clock.learn(self.capture.device_state)
        self.pauses: list[float] = []
        self.meter = PauseMeter(link.connection, self.domain, self.pauses.append)
        self.memory = ProcessMemory(self.domain.pid)
        self.replica = [np.zeros((block.pages, 4096), np.uint8) for block in self.tracker.blocks]
        self.copy = MemoryCopy(self.capture, [], self.take, lambda *_: None)

    def take(self, dirty: DirtyBlock) -> None:
        self.replica[dirty.block][dirty.numbers] = dirty.content

    def content(self) -> list[NDArray[np.uint8]]:
        """All of the VM's memory, now."""
        return [self.memory.read(block.address, np.arange(block.pages)) for block in self.tracker.blocks]

    def differing(self) -> int:
        """Pages that are not in the replica as they are in the VM, once the replica has a last cut."""
        self.domain.qmp("stop")
        for dirty in self.capture.cut(lambda: None, lambda: None, lambda _: None).memory:
            self.take(dirty)
        pairs = zip(self.content(), self.replica, strict=True)
        found = sum(int((mine != theirs).any(axis=1).sum()) for mine, theirs in pairs)
        self.domain.qmp("cont")
        return found

    def still(self) -> int:
        """Pages in which something lands while the VM stands still in a cut."""
        seen: list[list[NDArray[np.uint8]]] = []

        def wait() -> None:
            time.sleep(QUIET_S)
            seen.append(self.content())

        for dirty in self.capture.cut(lambda: seen.append(self.content()), wait, lambda _: None).memory:
            self.take(dirty)
        return sum(int((one != other).any(axis=1).sum()) for one, other in zip(*seen, strict=True))

    def close(self) -> None:
        self.meter.close()
        self.capture.close()
        self.fifo.close()
        self.tracker.close()


def main(vm: str, rounds: int, live: bool) -> None:
    oracle = Oracle(vm, live)
    landed = [oracle.still() for _ in range(5)]
    copied, wrong, began = 0, [], time.monotonic()
    for number in range(1, rounds + 1):
        time.sleep(RUN_S)
        copied += oracle.copy.round()
        if number % CHECK_EVERY == 0 and (found := oracle.differing()):
            wrong.append([number, found])
            if live:
                break
    took_s = time.monotonic() - began
    pauses = [round(float(np.percentile(oracle.pauses, part)), 1) for part in (50, 90, 100)]
    oracle.close()
    told = {"rounds": number, "copied": copied, "wrong": wrong, "landed": landed, "pauses": pauses, "took_s": took_s}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), "live" in sys.argv[3:])
