# SPDX-License-Identifier: Apache-2.0
"""The wrong moment: what happens to a VM, or to the other host, while it is copied or protected, and what is said."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vm.pair import Pair, eventually, running_pair
from tests.vm.test_replica import same_bytes
from tools.lab import domains
from tools.lab.guest import Mode

REPO = Path(__file__).resolve().parents[2]
COPIED_MIB = 64  # of random data: 8 s of copying


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two hosts; the copy of the VM `copied` takes long enough for things to happen in it."""

    def settle(pair: Pair) -> None:
        with pair.a.path("/etc/remusdb/host.toml").open("a") as file:
            file.write("\n[vms.copied]\nsync_bandwidth_mib_s = 8\ncopy_patience_ms = 30000\n")

    with running_pair(REPO / "build" / "test" / request.module.__name__, before_start=settle) as made:
        yield made


# --- the initial copy ---


@contextmanager
def copying(pair: Pair, vm: domains.Vm) -> Iterator[subprocess.Popen[str]]:
    """`protect`, in the middle of its copy of the disk."""
    with pair.a.popen(["remusdb", "protect", vm.name, "--to", "b"]) as protect:
        replica = pair.b.path(f"/var/lib/remusdb/images/{vm.name}/vda.raw")
        eventually(lambda: replica.exists() and replica.stat().st_blocks * 512 > 4 << 20, 20, "nothing is copied")
        yield protect


def stop_agent(pair: Pair, seconds: float) -> None:
    """The agent does not run for so long."""
    (pid,) = pair.pids(pair.b, "remusdb", "agent")
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def cut_link(pair: Pair, seconds: float) -> None:
    """Nothing goes between the hosts for so long."""
    pair.a.cut_link()
    time.sleep(seconds)
    pair.a.restore_link()


def test_the_copy_goes_on_whatever_happens_to_the_other_host_in_it(pair: Pair) -> None:
    """Stalls and cuts of the backup in one and the same copy: it is not begun anew, and the replica is equal."""
    vm = domains.define_bare(pair.a, Mode.DIRTIER, name="copied", disk_mib=COPIED_MIB)
    with pair.a.path(vm.disk).open("r+b") as disk:
        disk.write(os.urandom(COPIED_MIB << 20))
    pair.a.run(["virsh", "start", vm.name])
    with copying(pair, vm) as protect:
        stop_agent(pair, 0.35)
        cut_link(pair, 3.0)
        stop_agent(pair, 5.0)  # longer than a connection of the copy may be silent: it is made anew
        assert protect.wait(90) == 0
    assert pair.state(vm.name) == "protected"
    told = [event["event"] for event in pair.events(vm.name)]
    assert told.count("protected") == 1 and "failed" not in told and "resync" not in told, told
    assert "lost" in told and "resumed" in told
    assert pair.product.status(vm.name)["term"] == 1
    pair.settle(vm.name)
    assert same_bytes(pair.a.path(vm.disk), pair.b.path(f"/var/lib/remusdb/images/{vm.name}/vda.raw"))
    assert pair.differing_blocks(vm.name) == []
    pair.unprotect(vm.name)
