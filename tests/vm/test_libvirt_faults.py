# SPDX-License-Identifier: Apache-2.0
"""libvirtd dies or hangs on either side while a VM is protected: the VM runs, and protection goes on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from tests.vm.pair import Pair, eventually
from tools.lab import domains
from tools.lab.host import Host


def libvirtd(pair: Pair, host: Host) -> int:
    """The pid of this host's libvirtd."""
    (pid,) = pair.pids(host, "libvirtd")
    return pid


@contextlib.contextmanager
def killed(pair: Pair, host: Host) -> Iterator[None]:
    """libvirtd is dead inside the block, and started again after it."""
    os.kill(libvirtd(pair, host), signal.SIGKILL)
    eventually(lambda: not pair.pids(host, "libvirtd"))
    try:
        yield
    finally:
        host.start_libvirtd()
        host.run(["virsh", "version"])


@contextlib.contextmanager
def stopped(pair: Pair, host: Host) -> Iterator[None]:
    """libvirtd hangs inside the block."""
    pid = libvirtd(pair, host)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


FAULTS = {"killed": killed, "stopped": stopped}


def goes_on(pair: Pair, vm: domains.Vm) -> None:
    """Epochs are committed, and the replica is the VM."""
    pair.goes_on(vm.name)
    status = pair.product.status(vm.name)
    assert status["state"] == "protected" and "epoch by epoch" in status["reason"], status
    assert pair.runs(vm)
    pair.settle(vm.name)
    assert pair.differing_blocks(vm.name) == []
    pair.a.run(["virsh", "resume", vm.name])
    pair.unprotect(vm.name)
    assert pair.a.run(["virsh", "domstate", vm.name]).stdout.strip() == "running"
    assert "No current block job" in pair.a.run(["virsh", "blockjob", vm.name, "vda"]).stdout


@pytest.mark.parametrize("private", [False, True], ids=["libvirt", "private"])
@pytest.mark.parametrize(("fault", "seconds"), [("killed", 2), ("killed", 8), ("stopped", 5)])
def test_libvirtd_of_the_primary(pair: Pair, fault: str, seconds: float, private: bool) -> None:
    """Nothing can be cut without libvirt: output waits, status says why. With a private monitor nothing waits."""
    vm = pair.bare()
    if private:
        pair.product.cli("a", "prepare", vm.name)
        pair.a.run(["virsh", "destroy", vm.name])
        pair.a.run(["virsh", "start", vm.name])
    pair.protect(vm.name)
    with FAULTS[fault](pair, pair.a):
        time.sleep(seconds / 2)
        status = pair.product.status(vm.name)
        assert status["state"] == "protected"
        assert private or "libvirt has not answered" in status["reason"], status
        assert pair.runs(vm)
        time.sleep(seconds / 2)
        if private:
            pair.await_epoch(vm.name, status["committed"] + 1)
    assert pair.product.standby(vm.name)["state"] == "ready"
    goes_on(pair, vm)


def test_libvirtd_of_the_primary_is_restarted_at_any_moment(pair: Pair) -> None:
    """Also in the middle of a cut, when QEMU's answer dies with it."""
    vm = pair.bare()
    pair.protect(vm.name)
    chance = random.Random(1)
    for _ in range(6):
        with killed(pair, pair.a):
            pass
        pair.goes_on(vm.name)
        time.sleep(chance.uniform(0.0, 0.2))
    for _ in range(10):
        with stopped(pair, pair.a):
            time.sleep(0.3)
        time.sleep(chance.uniform(0.1, 0.3))
    goes_on(pair, vm)


def test_libvirtd_of_the_primary_stays_away(pair: Pair) -> None:
    """Patience ends: protection ends in good order, and the VM runs on."""
    config = pair.a.path("/etc/remusdb/host.toml")
    before = config.read_text()
    vm = pair.bare()
    config.write_text(before + f"[vms.{vm.name}]\nvm_call_timeout_ms = 1000\nlibvirt_patience_ms = 2000\n")
    pair.product.daemons["host", "a"].terminate()
    pair.product.daemons["host", "a"].wait(20)
    pair.product.start_host()
    pair.protect(vm.name)
    with killed(pair, pair.a):
        assert "libvirt" in pair.await_event(vm.name, "solo")["reason"]
        assert pair.runs(vm)
        assert pair.product.standby(vm.name)["state"] == "empty"
    config.write_text(before)
    assert pair.a.run(["virsh", "domstate", vm.name]).stdout.strip() == "running"


@pytest.mark.parametrize(("fault", "seconds"), [("killed", 2), ("stopped", 5)])
def test_libvirtd_of_the_backup(pair: Pair, fault: str, seconds: float) -> None:
    """The standby is fed without libvirt: epochs go on all the while."""
    vm = pair.bare()
    pair.protect(vm.name)
    with FAULTS[fault](pair, pair.b):
        before = int(pair.product.status(vm.name)["committed"])
        time.sleep(seconds)
        pair.await_epoch(vm.name, before + 6)
    goes_on(pair, vm)
    eventually(lambda: vm.name not in pair.b.run(["virsh", "list", "--all", "--name"]).stdout)


@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_takeover_while_libvirtd_of_the_backup_is_away(pair: Pair, fault: str) -> None:
    """The VM runs without libvirt's help; libvirt knows it and keeps its definition once it is back."""
    vm = pair.bare()
    pair.protect(vm.name)
    with FAULTS[fault](pair, pair.b):
        pair.a.kill_qemu(vm.name)
        eventually(lambda: pair.product.standby(vm.name)["state"] == "promoted", 10, "no takeover")
        assert pair.runs(vm, pair.b), "the VM does not run while libvirtd is away"
    virsh = ["virsh", "dominfo", vm.name]
    eventually(lambda: "running" in pair.b.run(["virsh", "domstate", vm.name]).stdout, 10, "libvirt knows no VM")
    eventually(lambda: "Persistent:     yes" in pair.b.run(virsh).stdout, 20, "the VM was not defined")
    assert "-incoming" not in pair.b.run(["virsh", "dumpxml", "--inactive", vm.name]).stdout
    assert pair.runs(vm, pair.b)
