# SPDX-License-Identifier: Apache-2.0
"""One process sees the memory of another, page by page as it touches it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from remusdb.capture.memory import ProcessMemory
from remusdb.vm.ramblocks import PAGE_BYTES, Block
from remusdb_agents.backup.standby.borrowed_memory import BorrowedMemory

SMALL, LARGE = 16, 3000  # pages
NOBODY = 65534
ANYBODY = Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "1"
# Two blocks of memory; each line on stdin is a block and a page, answered by the first byte that is there.
PROCESS = f"""
import ctypes, mmap, os, sys
if sys.argv[2] == "nobody":
    os.setgid({NOBODY}); os.setuid({NOBODY})
blocks = [mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for pages in ({SMALL}, {LARGE})]
views = [(ctypes.c_char * len(block)).from_buffer(block) for block in blocks]
if sys.argv[1] == "lender":
    for block, pages in zip(blocks, ({SMALL}, {LARGE})):
        for page in range(pages):
            block[page * 4096] = 1 + page % 250
else:
    blocks[1][7 * 4096] = 99  # touched before anything is lent
print(*(ctypes.addressof(view) for view in views), flush=True)
for line in sys.stdin:
    block, page = map(int, line.split())
    print(blocks[block][page * 4096], flush=True)
"""
Ask = Callable[[int, int], int]


class Party:
    """A process with two blocks of memory."""

    def __init__(self, role: str, user: str = "root") -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", PROCESS, role, user], **pipes)  # type: ignore[call-overload]
        assert self.process.stdout is not None
        addresses = [int(word) for word in self.process.stdout.readline().split()]
        sizes = (SMALL, LARGE)
        self.blocks = [Block(f"b{n}", sizes[n] * PAGE_BYTES, address) for n, address in enumerate(addresses)]

    def first_byte(self, block: int, page: int) -> int:
        """What is at the beginning of a page."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{block} {page}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture
def party() -> Iterator[Callable[..., Party]]:
    made: list[Party] = []

    def make(role: str, user: str = "root") -> Party:
        made.append(Party(role, user))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()
        one.process.communicate()


def borrow(borrower: Party, lender: Party, broken: Callable[[Exception], None]) -> BorrowedMemory:
    pairs = list(zip(borrower.blocks, lender.blocks, strict=True))
    memory = ProcessMemory(lender.process.pid)
    return BorrowedMemory(borrower.process.pid, pairs, memory, SMALL * PAGE_BYTES, broken)


def never(exc: Exception) -> None:
    raise AssertionError(exc)


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_what_is_touched_is_the_lenders(party: Callable[..., Party], user: str) -> None:
    """Small blocks as a whole, large ones page by page, and also what the borrower had touched before."""
    lender, borrower = party("lender"), party("borrower", user)
    with closing(borrow(borrower, lender, never)) as memory:
        assert memory.kernel_too is (user == "root" or ANYBODY)
        with memory.lend():
            assert [borrower.first_byte(0, page) for page in (0, 15)] == [1, 16]
            assert memory.given == 0
            assert [borrower.first_byte(1, page) for page in (0, 2999, 2999, 7)] == [1, 250, 250, 8]
        assert memory.given == 2
    assert borrower.first_byte(1, 0) == 1
    assert lender.first_byte(1, 7) == 8


def test_before_it_is_lent_who_touches_it_waits(party: Callable[..., Party]) -> None:
    """It must not see zeros, nor what the lender had before it stood still."""
    lender, borrower = party("lender"), party("borrower")
    seen: list[int] = []
    with closing(borrow(borrower, lender, never)) as memory:
        thread = threading.Thread(target=lambda: seen.append(borrower.first_byte(1, 100)))
        thread.start()
        thread.join(0.2)
        assert not seen
        with memory.lend():
            thread.join(5)
            assert seen == [101]


def test_a_lender_that_died_is_told(party: Callable[..., Party]) -> None:
    """And the borrower waits no longer once whoever is told has ended the loan."""
    lender, borrower = party("lender"), party("borrower")
    told = threading.Event()
    with closing(borrow(borrower, lender, lambda _exc: told.set())) as memory:
        lender.process.kill()
        lender.process.wait()
        thread = threading.Thread(target=borrower.first_byte, args=(1, 100), daemon=True)
        memory._small, memory._touched = [], []  # nothing of it can be copied any more
        with memory.lend():
            thread.start()
            assert told.wait(5)
    thread.join(5)
    assert not thread.is_alive()
    assert os.path.exists(f"/proc/{borrower.process.pid}")
