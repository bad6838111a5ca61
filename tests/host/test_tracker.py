# SPDX-License-Identifier: Apache-2.0
"""What the tracker names while a disk reads past the page cache: real reads, of a file that answers slowly (FUSE).

The reader pins its pages at once and gets their data READ_MS later, so a test can be sure to be in between.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from remusdb.capture.memory import ProcessMemory
from remusdb.capture.runs import SPAN_BYTES
from remusdb.capture.tracker import Span, Tracker
from remusdb.vm.ramblocks import Block
from tests.waiting import eventually

READ_MS = 1000
PINNED_S = 0.3  # a read that began so long ago has pinned its pages and has no data yet
PAGES = np.arange(16)

# Memory of 16 pages (and one that is never touched in between), and a read into them for each line on stdin.
READER = """
import ctypes, mmap, os, sys
memory = mmap.mmap(-1, 32 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
file = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
for at, _ in enumerate(sys.stdin):
    print(os.preadv(file, [memoryview(memory)[: 16 * 4096]], at * 16 * 4096), flush=True)
"""


class Reader:
    """A process that reads, and the tracker of its memory."""

    def __init__(self, file: Path, folder: Path) -> None:
        mount = f"setpriv --pdeathsig KILL nbdfuse {file} --unix {folder}/nbd </dev/null >/dev/null &"
        inside = f'{mount} until [ -f {file} ]; do sleep 0.02; done; exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", inside, "sh", sys.executable, "-c", READER, str(file)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = int(self._line())
        self.memory = ProcessMemory(self.process.pid)
        self.tracker = Tracker(self.process.pid, [Block("ram", 32 * 4096, self.address)])

    def begin(self) -> None:
        """Begin a read; its pages are pinned when this returns, and their data is to come."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        time.sleep(PINNED_S)

    def drain(self) -> None:
        """Wait for the read, as QEMU does when it stops."""
        assert self._line() == str(len(PAGES) * 4096)

    def collect(self) -> set[int]:
        return {int(page) for _, pages in self.tracker.pages(self.tracker.collect()) for page in pages}

    def content(self) -> np.ndarray:
        return self.memory.read(self.address, PAGES)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        self.tracker.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    serve = ["nbdkit", "--foreground", "--unix", str(tmp_path / "nbd"), "--filter=delay", "random", "4M", "seed=1"]
    with subprocess.Popen([*serve, f"rdelay={READ_MS}ms"]) as nbdkit:
        eventually((tmp_path / "nbd").exists, otherwise="nbdkit did not start")
        (tmp_path / "slow").mkdir()
        made = Reader(tmp_path / "slow" / "disk", tmp_path)
        yield made
        made.close()
        nbdkit.kill()


def test_pages_protected_under_a_read_are_lost(reader: Reader) -> None:
    """Why a protection must wait for the reads: should this fail one day, the kernel tells more than it did."""
    reader.collect()
    reader.begin()
    assert reader.collect() == set(PAGES), "the pin was not noted as a write"
    copied = reader.content()
    reader.drain()
    assert (copied != reader.content()).any(axis=1).all(), "the data was there too soon: this proves nothing"
    assert reader.collect() == set()


def test_pages_protected_when_reads_are_drained_are_not_lost(reader: Reader) -> None:
    """Read, drained, protected, copied: the copy has the data. And what pins a page after that names it again."""
    reader.collect()
    reader.begin()
    reader.drain()
    assert reader.collect() == set(PAGES)
    first = reader.content()
    reader.begin()
    assert np.array_equal(reader.content(), first), "the copy was not made under the read: this proves nothing"
    reader.drain()
    assert reader.collect() == set(PAGES)
    assert not np.array_equal(reader.content(), first)


def test_looking_protects_nothing_and_may_be_done_under_a_read(reader: Reader) -> None:
    reader.collect()
    reader.begin()
    seen = reader.tracker.written()
    assert seen == reader.tracker.written() == deque([Span(0, reader.address, reader.address + len(PAGES) * 4096)])
    reader.drain()
    assert reader.collect() == set(PAGES)


def test_the_first_round_names_and_protects_every_page(reader: Reader) -> None:
    """Also what nobody ever touched (which Linux 6.12 does not call written), and again for the next tracker."""
    for _ in range(2):
        found = reader.tracker.protect(reader.tracker.everything(), float("inf"))
        assert {int(page) for _, pages in reader.tracker.pages(found) for page in pages} == set(range(32))
        assert reader.collect() == set()
        reader.tracker.close()
        reader.tracker = Tracker(reader.process.pid, reader.tracker.blocks)


@pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS])
def test_a_protection_takes_only_so_long(flags: int) -> None:
    """Then it leaves the rest for the next stop, in memory that is private and in a memfd's kind."""
    size = 4 * SPAN_BYTES
    code = f"import ctypes, mmap; m = mmap.mmap(-1, {size}, flags={flags}); print(ctypes.addressof("
    code += "ctypes.c_char.from_buffer(m)), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        tracker = Tracker(owner.pid, [Block("ram", size, int(owner.stdout.readline()))])
        spans = tracker.everything()
        named: list[int] = []
        for left in (3, 2, 1, 0):
            for _, pages in tracker.pages(tracker.protect(spans, 0.0)):
                named += pages.tolist()
            assert len(spans) == left
        assert named == list(range(size // 4096))
        assert not tracker.written() and not tracker.protect(spans, 0.0)
        tracker.close()
        os.kill(owner.pid, 9)
