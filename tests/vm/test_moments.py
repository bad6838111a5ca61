# SPDX-License-Identifier: Apache-2.0
"""The wrong moment: what happens to a VM, or to the other host, while it is copied or protected, and what is said."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remusdb.capture.memory import ProcessMemory
from remusdb.reasons import Code
from remusdb.vm.ramblocks import PAGE_BYTES
from tests.vm.pair import Pair, eventually, running_pair
from tests.vm.test_replica import same_bytes
from tools.lab import domains, guest
from tools.lab.guest import Mode
from tools.lab.host import Host

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


# --- the initial sync ---


def said(pair: Pair) -> Path:
    """What the last `protect` said."""
    return pair.lab.folder / "protect.log"


@contextmanager
def copying(pair: Pair, vm: domains.Vm) -> Iterator[subprocess.Popen[str]]:
    """`protect`, in the middle of its copy of the disk."""
    with pair.a.popen(["remusdb", "protect", vm.name, "--to", "b"], log=said(pair)) as protect:
        replica = pair.b.path(f"/var/lib/remusdb/images/{vm.name}/vda.raw")
        eventually(lambda: replica.exists() and replica.stat().st_blocks * 512 > 4 << 20, 20, "nothing is copied")
        yield protect


def copied(pair: Pair) -> domains.Vm:
    """A running VM whose disk takes a while to copy."""
    pair.a.run(["virsh", "undefine", "copied"], check=False)
    vm = domains.define_bare(pair.a, Mode.DIRTIER, name="copied", disk_mib=COPIED_MIB)
    with pair.a.path(vm.disk).open("r+b") as disk:
        disk.write(os.urandom(COPIED_MIB << 20))
    pair.a.run(["virsh", "start", vm.name])
    return vm


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
    """Stalls and cuts of the backup in one and the same copy: it is not begun again, and the replica is equal."""
    vm = copied(pair)
    with copying(pair, vm) as protect:
        stop_agent(pair, 0.35)
        cut_link(pair, 3.0)
        stop_agent(pair, 5.0)  # longer than a connection of the copy may be silent: it is made again
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


# --- a protected VM that does not run ---


def order(pair: Pair, vm: str, what: int) -> None:
    """Have the bare-metal guest do something: it looks at this place in its memory."""
    blocks = pair.blocks(pair.a, vm)
    ram = next(blocks[name] for name in ("pc.ram", "ram") if name in blocks)
    page = np.zeros((1, PAGE_BYTES), dtype=np.uint8)
    page[0, 0] = what
    ProcessMemory(pair.a.qemu_pid(vm)).write(ram.address, np.array([guest.ORDER_AT // PAGE_BYTES]), page)


def await_trouble(pair: Pair, vm: str, what: str) -> dict[str, Any]:
    """Status and history say it, once; the status."""
    eventually(lambda: what in pair.product.status(vm)["troubles"], 20, f"{what} is not in the status of {vm}")
    told = [one for one in pair.events(vm) if one["event"] == "trouble" and one["details"]["what"] == what]
    assert len(told) == 1, told
    status = pair.product.status(vm)
    assert told[0]["reason"] in status["reason"]
    return status


def await_cleared(pair: Pair, vm: str, what: str) -> None:
    """Status and history say that it is over."""
    eventually(lambda: what not in pair.product.status(vm)["troubles"], 20, f"{what} stays in the status of {vm}")
    assert pair.await_event(vm, "cleared")["details"]["what"] == what


def domstate(host: Host, vm: str) -> str:
    return host.run(["virsh", "domstate", vm]).stdout.strip()


def test_a_vm_that_is_suspended_says_so_and_stays_so(pair: Pair) -> None:
    """Also over a takeover, and a switchover that does not happen; resumed, it runs on where it was."""
    vm = pair.bare()
    pair.protect(vm.name)
    assert pair.product.status(vm.name)["troubles"] == []
    pair.stop(pair.a, vm.name)
    status = await_trouble(pair, vm.name, "suspended")
    assert status["state"] == "protected" and f"virsh resume {vm.name}" in status["hint"]
    pair.a.run(["virsh", "resume", vm.name], check=False)
    pair.a.run(["virsh", "qemu-monitor-command", vm.name, "--hmp", "cont"])
    await_cleared(pair, vm.name, "suspended")
    assert pair.runs(vm)

    pair.stop(pair.a, vm.name)
    pair.settle(vm.name)
    said = len(vm.serial_text(pair.a))
    os.kill(pair.a.qemu_pid(vm.name), signal.SIGKILL)
    promoted = pair.await_event(vm.name, "promoted", on="b")
    assert "is paused as it was" in promoted["reason"] and f"virsh resume {vm.name}" in promoted["hint"]
    assert domstate(pair.b, vm.name) == "paused" and said > 0
    assert not pair.runs(vm, pair.b)
    pair.b.run(["virsh", "resume", vm.name])
    assert pair.runs(vm, pair.b)


def test_a_vm_that_qemu_paused_for_a_full_disk_says_so_and_is_taken_over_running(pair: Pair) -> None:
    folder = "/var/lib/libvirt/images/small"
    pair.a.run(["mkdir", "-p", folder])
    pair.a.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder])
    try:
        vm = domains.define_bare(pair.a, Mode.DIRTIER, name="full", folder=folder, ide=True)
        pair.a.run(["truncate", "-s", "8M", vm.disk])  # on the file system that only this host sees
        pair.a.run(["dd", "if=/dev/zero", f"of={folder}/filler", "bs=1k", "count=900"])
        pair.a.run(["virsh", "start", vm.name])
        pair.protect(vm.name)
        order(pair, vm.name, guest.WRITE)
        status = await_trouble(pair, vm.name, "io-error")
        assert "no space left" in status["reason"] and "hda" in status["reason"]
        assert not pair.runs(vm)
        after = pair.product.standby(vm.name)["committed"] + 10  # half a second of epochs of a VM that stands still
        eventually(lambda: pair.product.standby(vm.name)["committed"] >= after, 30, "no epochs")
        os.kill(pair.a.qemu_pid(vm.name), signal.SIGKILL)
        pair.await_event(vm.name, "promoted", on="b")
        assert domstate(pair.b, vm.name) == "running" and pair.runs(vm, pair.b)
        replica = pair.b.path(f"/var/lib/remusdb/images/{vm.name}/hda.raw")
        eventually(lambda: replica.stat().st_blocks * 512 > 1 << 20, 60, "the guest's write is not done over there")
    finally:
        pair.a.run(["umount", "-l", folder])


# --- a VM that ends: one event, and a true one ---


def ends_once(pair: Pair, vm: domains.Vm, end: Callable[[], object], why: Code) -> None:
    """After `end` the history says that it was unprotected, and why, and nothing else; the replica is given up."""
    before = len(pair.events(vm.name))
    end()
    status = pair.await_state(vm.name, "unprotected")
    assert status["why"]["code"] == why, status
    told = pair.events(vm.name)[before:]
    assert [one["event"] for one in told] == ["unprotect"] and told[0]["why"]["code"] == why, told
    time.sleep(1.0)  # twice the silence limit
    assert pair.product.standby(vm.name)["state"] == "empty"


def test_a_vm_that_is_shut_down_is_told_in_one_true_event(pair: Pair) -> None:
    """By its guest, by a reboot that its definition ends, from outside; `virsh reboot` ends nothing."""
    vm = pair.bare()
    ends: list[tuple[Callable[[], object], Code]] = [
        (lambda: order(pair, vm.name, guest.POWER_OFF), Code.ENDED_BY_GUEST),
        (lambda: pair.a.run(["virsh", "destroy", vm.name]), Code.ENDED_BY_DESTROY),
        (lambda: order(pair, vm.name, guest.RESET), Code.ENDED_BY_REBOOT),
    ]
    for number, (end, why) in enumerate(ends):
        if number:
            pair.a.run(["virsh", "start", vm.name])
        if end is ends[-1][0]:
            pair.a.run(["virsh", "set-lifecycle-action", vm.name, "reboot", "destroy", "--live"])
        pair.protect(vm.name)
        ends_once(pair, vm, end, why)


def test_a_vm_that_is_shut_down_in_its_initial_copy(pair: Pair) -> None:
    vm = copied(pair)
    eventually(lambda: len(vm.serial_text(pair.a)) > 20, 20, "it prints nothing")
    with copying(pair, vm) as protect:
        order(pair, vm.name, guest.POWER_OFF)
        assert protect.wait(60) != 0
    assert "the guest shut itself down, during the initial sync" in said(pair).read_text()
    status = pair.await_state(vm.name, "unprotected", "failed")
    assert "the guest shut itself down" in status["reason"], status
    assert not any("mirror" in one["reason"] for one in pair.events(vm.name))
