# SPDX-License-Identifier: Apache-2.0
"""What was written is collected at a stop, all of it and once: by the real kernel, of memory of our own."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from remusdb import native
from remusdb.capture import kernel
from remusdb.capture.buffers import KEPT_PAGES, PageBuffers
from remusdb.capture.hotness import HOT_AFTER, TRY_EVERY, Hotness
from remusdb.capture.memory import ProcessMemory
from remusdb.capture.pagemap import PageMap
from remusdb.capture.runs import Runs, page_count, page_numbers
from remusdb.errors import VmError
from remusdb.vm.ramblocks import Block

PAGES = 4096


class Watched:
    """Memory of this process, in which every page is protected at first."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._anchor = ctypes.c_char.from_buffer(self.memory)
        self.block = Block("ram", PAGES * mmap.PAGESIZE, ctypes.addressof(self._anchor))
        flags = os.O_CLOEXEC | os.O_NONBLOCK | kernel.UFFD_USER_MODE_ONLY
        self._uffd = kernel.check(kernel.libc.syscall(kernel.SYS_USERFAULTFD, flags), "userfaultfd")
        fcntl.ioctl(self._uffd, kernel.UFFDIO_API, bytearray(struct.pack("<QQQ", 0xAA, kernel.UFFD_FEATURES, 0)))
        argument = struct.pack("<QQQQ", self.block.address, self.block.size, kernel.UFFDIO_REGISTER_MODE_WP, 0)
        fcntl.ioctl(self._uffd, kernel.UFFDIO_REGISTER, bytearray(argument))
        self.map = PageMap(os.getpid())
        self.map.protect(self.block.address, self.block.address + self.block.size, whole=True)
        self.hotness = Hotness(PAGES)

    def write(self, numbers: list[int]) -> None:
        for number in numbers:
            self.memory[number * mmap.PAGESIZE] = (number % 255) + 1

    def collect(self) -> Runs:
        return self.map.collect(self.block, self.hotness.hot, self.hotness.count)

    def close(self) -> None:
        self.map.close()
        os.close(self._uffd)
        del self._anchor
        self.memory.close()


@pytest.fixture(params=["C", "numpy"])
def watched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    if request.param == "numpy":
        monkeypatch.setattr(native, "kernels", None)
    else:
        assert native.kernels is not None, "remusdb/native was not built: tools/venv.sh says why"
    made = Watched()
    yield made
    made.close()


def test_what_was_written_is_collected_once(watched: Watched) -> None:
    random = np.random.default_rng(7)
    for count in (0, 1, 2, 40, 700, PAGES):
        written = sorted(random.choice(PAGES, count, replace=False).tolist())
        watched.write(written)
        runs = watched.collect()
        assert page_numbers(runs, watched.block).tolist() == written
        assert page_count(runs) == count
        assert not len(watched.collect()), "it is protected, and was not written since"


@pytest.mark.parametrize(("seen", "found"), [(2, 3), (1, 1), (64, 2), (1, 64)])
def test_little_room_is_no_loss(watched: Watched, seen: int, found: int) -> None:
    """As where more runs were written than a scan tells of at once."""
    watched.map._seen, watched.map._regions = (np.zeros((n, 3), np.uint64) for n in (seen, found))
    for step in (2, 40, 400):
        written = [*range(0, PAGES, step), PAGES - 1]
        watched.write(written)
        assert page_numbers(watched.collect(), watched.block).tolist() == sorted(set(written))
        assert not len(watched.collect())


def test_a_kernel_that_refuses_is_an_error(watched: Watched) -> None:
    with pytest.raises(OSError, match=r"PAGEMAP_SCAN|Bad address|Invalid argument"):
        watched.map.collect(Block("ram", PAGES * mmap.PAGESIZE, 1 << 50), watched.hotness.hot, 0)


def test_what_c_makes_nothing_of_numpy_looks_at(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan that does not advance, or is not in order: C leaves it, and the other way says what it is."""
    monkeypatch.setattr(native, "kernels", type("", (), {"collect": staticmethod(lambda *given: (0, given[1], 0))}))
    watched.write([5, 900])
    assert page_numbers(watched.collect(), watched.block).tolist() == [5, 900]


def test_many_runs_are_named_once(watched: Watched) -> None:
    """The kernel says that it came as far as its 512th run, and names what is behind it all the same."""
    written = list(range(0, PAGES, 2))
    watched.write(written)
    seen = watched.map.written(watched.block.address, watched.block.address + watched.block.size)
    assert page_numbers(seen, watched.block).tolist() == written
    watched.hotness.hot[written] = 1
    watched.hotness.count = len(written)
    assert page_numbers(watched.collect(), watched.block).tolist() == written, "what is hot stays written"
    watched.hotness.hot[:], watched.hotness.count = 0, 0
    assert page_numbers(watched.collect(), watched.block).tolist() == written
    assert not len(watched.collect())


@pytest.mark.parametrize("seed", range(4))
def test_the_replica_follows_while_pages_are_hot_and_cool_down(watched: Watched, seed: int) -> None:
    """Some pages are written in every epoch for a while, then others; whatever is left unprotected is never missed."""
    random, replica = np.random.default_rng(seed), np.zeros((PAGES, mmap.PAGESIZE), np.uint8)
    mine = np.frombuffer(watched.memory, np.uint8).reshape(PAGES, -1)
    memory, hotness = ProcessMemory(os.getpid()), watched.hotness
    hot, most = np.empty(0, np.int64), 0
    for epoch in range(200):
        if epoch % 40 == 0:
            hot = np.unique(random.integers(0, PAGES, 60) + random.integers(0, 3, 60)) % PAGES
        for number in {*hot.tolist(), *random.integers(0, PAGES, random.integers(0, 9)).tolist()}:
            mine[number, random.integers(0, mmap.PAGESIZE)] += 1
        hotness.before()
        runs = watched.collect()
        named = page_numbers(runs, watched.block)
        content = np.empty((len(named), mmap.PAGESIZE), np.uint8)
        memory.read_runs(runs, content)
        replica[named] = content
        most = max(most, hotness.count)
        hotness.after(named)
        assert np.array_equal(replica, mine)
    assert most > 40 and hotness.count == np.count_nonzero(hotness.hot)
    for _ in range(HOT_AFTER + TRY_EVERY + 1):
        hotness.before()
        hotness.after(page_numbers(watched.collect(), watched.block))
    assert not hotness.count and not len(watched.collect()), "nothing is written any more"


def test_a_hot_page_that_the_kernel_does_not_name_is_named_all_the_same(watched: Watched) -> None:
    watched.hotness.hot[[7, 300]] = 1
    watched.hotness.count = 2
    watched.write([5])
    assert page_numbers(watched.collect(), watched.block).tolist() == [5, 7, 300]


def test_what_is_hot_costs_no_fault() -> None:
    hotness = Hotness(100)
    always, sometimes, protections = [3, 50], [70], 0
    for epoch in range(400):
        hotness.before()
        named = sorted({*np.flatnonzero(hotness.hot).tolist(), *always, *(sometimes if epoch % 2 else [])})
        protections += sum(not hotness.hot[page] for page in always)
        hotness.after(np.array(named))
    assert not hotness.hot[70], "every other epoch is not every epoch"
    assert protections < 2 * (HOT_AFTER + 2 * 400 / TRY_EVERY + 2)


def test_runs_are_read_one_after_the_other(watched: Watched) -> None:
    watched.write([3, 4, 5, 70, 4095])
    runs = watched.collect()
    content = np.empty((page_count(runs), mmap.PAGESIZE), np.uint8)
    ProcessMemory(os.getpid()).read_runs(runs, content)
    assert content[:, 0].tolist() == [4, 5, 6, 71, 4095 % 255 + 1]
    assert not content[:, 1:].any()
    with pytest.raises(ValueError, match="bytes there"):
        ProcessMemory(os.getpid()).read_runs(runs, content[1:])
    runs[-1] += np.uint64(1 << 40)
    with pytest.raises(VmError, match=r"cannot be reached|bytes moved"):
        ProcessMemory(os.getpid()).read_runs(runs, content)


def test_room_is_used_again_and_bounded() -> None:
    buffers = PageBuffers()
    first = buffers.take(700)
    buffers.give_back(first)
    again = buffers.take(1000)
    assert again.base is first.base and again.shape == (1000, 4096)
    assert buffers.take(10).base is not first.base, "it is taken"
    large = buffers.take(KEPT_PAGES + 1)
    buffers.give_back(large)
    assert buffers.take(1).base is not large.base
    nothing = buffers.take(0)
    buffers.give_back(nothing)
    assert nothing.shape == (0, 4096)
