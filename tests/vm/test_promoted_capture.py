# SPDX-License-Identifier: Apache-2.0
"""A VM that was taken over can be protected back to where it came from: captured as any other, byte for byte."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

from tests.vm.pair import Pair, eventually
from tests.vm.test_replica import same_bytes
from tools.lab import domains
from tools.lab.host import Host


def told(pair: Pair, on: str, *arguments: str) -> dict[str, Any]:
    """Status of the only VM asked for."""
    found: dict[str, Any] = json.loads(pair.product.cli(on, "status", *arguments, "--json", check=False).stdout)["vms"][
        0
    ]
    return found


def remove(host: Host, vm: str) -> None:
    host.run(["virsh", "destroy", vm], check=False)
    host.run(["virsh", "undefine", vm], check=False)


def test_a_promoted_vm_is_protected_back_and_taken_over_again(pair: Pair) -> None:
    vm = pair.bare()
    pair.protect(vm.name)
    pair.product.cli("b", "failover", vm.name, "--yes")
    assert pair.runs(vm, pair.b)
    assert "running" in pair.b.run(["virsh", "domstate", vm.name]).stdout
    pair.await_state(vm.name, "fenced")
    pair.product.cli("b", "reprotect", vm.name, "--to", "a", timeout_s=90)
    time.sleep(1.0)
    assert told(pair, "b", vm.name)["monitor"] == "private"
    pair.stop(pair.b, vm.name)
    time.sleep(0.5)  # the status is up to 0.2 s old
    after = int(told(pair, "b", vm.name)["epoch"]) + 2
    eventually(lambda: told(pair, "a", "--agent", vm.name)["applied"] >= after, 20, "no epoch was applied")
    assert pair.differing_blocks(vm.name) == []
    image = f"/var/lib/remusdb/images/{vm.name}/vda.raw"
    assert same_bytes(pair.a.path(image), pair.b.path(image))
    pair.b.run(["virsh", "resume", vm.name])
    assert pair.runs(vm, pair.b)
    time.sleep(1.0)  # what was done less than half a second before the end may be lost, also that it was resumed
    pair.b.kill_qemu(vm.name)
    eventually(lambda: told(pair, "a", "--agent", vm.name)["state"] == "promoted", 10, "no takeover on a")
    assert pair.runs(vm)
    inactive = ["virsh", "dumpxml", "--inactive", vm.name]
    eventually(lambda: pair.a.run(inactive, check=False).returncode == 0, 10, "the VM was not defined on a")
    assert "-incoming" not in pair.a.run(inactive).stdout
    remove(pair.a, vm.name)
    remove(pair.b, vm.name)


def test_a_standby_that_is_dead_at_takeover_is_started_cold(pair: Pair) -> None:
    """Better the VM as after a power cut, with all its disks had, than no VM."""
    vm: domains.Vm = pair.bare()
    pair.protect(vm.name)
    standby = pair.b.qemu_pid(vm.name)
    pair.a.cut_link()
    try:
        time.sleep(0.2)  # no epoch is applied any more: nobody notices
        os.kill(standby, signal.SIGKILL)
        eventually(lambda: pair.product.standby(vm.name)["state"] == "promoted", 10, "no takeover")
        eventually(lambda: vm.name in pair.running(pair.b), 30, "the VM was not started")
        assert pair.b.qemu_pid(vm.name) != standby
        assert pair.runs(vm, pair.b)
    finally:
        pair.a.restore_link()
    pair.await_state(vm.name, "fenced")
    remove(pair.b, vm.name)
