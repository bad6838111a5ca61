# SPDX-License-Identifier: Apache-2.0
"""A VM whose disk reads past the page cache, slowly, at random, into pages that are being copied: none is lost.

The kernel takes note of a page when the read pins it, and not when its data lands (docs/facts.md, "Capture").
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.vm.pair import Pair, eventually
from tools.lab import domains
from tools.lab.slow_disk import SlowDisk

ROUNDS = 300
READ_MS = 5
DISK_MIB = 16

log = logging.getLogger(__name__)


@pytest.fixture
def reader(pair: Pair) -> Iterator[domains.Vm]:
    """A running VM that reads: some 16 requests of four pages are in flight at any moment."""
    disk = SlowDisk(pair.a, mib=DISK_MIB, read_ms=READ_MS)
    vm = domains.define_disk_reader(pair.a, disk.path, disk.pages)
    pair.a.run(["virsh", "start", vm.name])
    eventually(lambda: len(vm.serial_text(pair.a)) > 20, 20, "the guest reads nothing")
    yield vm
    pair.a.run(["virsh", "destroy", vm.name], check=False)
    disk.close()


def oracle(pair: Pair, vm: domains.Vm, rounds: int, *how: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.vm.read_oracle", vm.name, str(rounds), *how]
    told: dict[str, Any] = json.loads(pair.a.run(command, timeout_s=300).stdout)
    log.info("%s", told)
    return told


@pytest.mark.timeout(400)  # some 40 s on an idle machine
def test_no_page_that_a_disk_reads_into_is_lost(pair: Pair, reader: domains.Vm) -> None:
    planted = oracle(pair, reader, ROUNDS, "live")
    assert planted["wrong"], "pages that are protected while the VM runs were not seen to be lost: this proves nothing"
    told = oracle(pair, reader, ROUNDS)
    assert told["rounds"] == ROUNDS and told["copied"] > 4 * ROUNDS
    assert told["landed"] == [0] * len(told["landed"]), "a read was in flight while QEMU stood still"
    assert told["wrong"] == []
    assert pair.runs(reader)
    pair.protect(reader.name)
    time.sleep(1.0)
    pair.settle(reader.name)
    assert pair.differing_blocks(reader.name) == []
    pair.unprotect(reader.name)
