# SPDX-License-Identifier: Apache-2.0
"""A second initial sync onto what the backup has: only what differs goes over, and the disks are equal."""

from __future__ import annotations

import os
import random
import signal
import time

from tests.vm.pair import Pair, eventually
from tests.vm.test_replica import same_bytes
from tools.lab import domains
from tools.lab.guest import Mode

DISK_MIB = 96
DATA_MIB = 64


def io(pair: Pair, vm: str, what: str) -> None:
    """One qemu-io command, as the guest's disk would do it."""
    order = f'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "{what}"'
    said = pair.a.run(["virsh", "qemu-monitor-command", vm, "--hmp", order]).stdout
    assert "failed" not in said and "rror" not in said, said


def filled(pair: Pair, name: str) -> domains.Vm:
    """A running VM whose disk is two thirds random data, with a hole in it and one at the end."""
    vm = domains.define_bare(pair.a, Mode.DIRTIER, name=name, disk_mib=DISK_MIB)
    with pair.a.path(vm.disk).open("r+b") as disk:
        for at in (0, (DATA_MIB // 2 + 8) << 20):
            disk.seek(at)
            disk.write(os.urandom(DATA_MIB << 19))
    pair.a.run(["virsh", "start", vm.name])
    return vm


def kill_agent(pair: Pair) -> None:
    agent = pair.product.daemons["agent", "b"]
    (pid,) = pair.pids(pair.b, "remusdb", "agent")
    os.kill(pid, signal.SIGKILL)
    agent.wait(10)


def test_only_what_differs_is_copied_again(pair: Pair) -> None:
    vm = filled(pair, "resync")
    replica = pair.b.path(f"/var/lib/remusdb/images/{vm.name}/vda.raw")
    assert not replica.exists()
    pair.protect(vm.name)
    first = pair.product.status(vm.name)
    assert first["seeded_bytes"] > DATA_MIB << 20 and first["same_bytes"] == 0
    kill_agent(pair)
    before = replica.stat().st_ino

    # New data, data over data, zeros over data, a part of a block, and something where nothing was.
    io(pair, vm.name, "write -P 17 3M 2M")
    io(pair, vm.name, "write -P 18 20484k 4k")
    io(pair, vm.name, "write -z 9M 1M")
    io(pair, vm.name, "discard 12M 1M")
    io(pair, vm.name, f"write -P 19 {DISK_MIB - 2}M 1M")
    pair.product.start_agent()
    pair.await_event(vm.name, "resync")
    pair.await_state(vm.name, "protected", within_s=40)
    second = pair.product.status(vm.name)
    assert replica.stat().st_ino == before
    assert 0 < second["seeded_bytes"] < first["seeded_bytes"] / 5, (first, second)
    assert second["same_bytes"] >= (DATA_MIB - 6) << 20
    io(pair, vm.name, "write -P 20 1M 300k")  # of an epoch, on blocks that were not sent
    pair.settle(vm.name)
    assert same_bytes(pair.a.path(vm.disk), replica)
    assert pair.differing_blocks(vm.name) == []
    assert replica.stat().st_blocks * 512 < (DATA_MIB + 8) << 20, "zeros were written"
    pair.a.run(["virsh", "resume", vm.name])

    pair.unprotect(vm.name)
    eventually(lambda: not replica.exists(), 10, "what an operator ended was kept")
    pair.a.run(["virsh", "destroy", vm.name])


def test_writes_during_the_second_copy_and_a_torn_base(pair: Pair) -> None:
    """The guest writes at any alignment while blocks are compared; an agent killed in mid-copy leaves a base, too."""
    vm = filled(pair, "resync-busy")
    replica = pair.b.path(f"/var/lib/remusdb/images/{vm.name}/vda.raw")
    chance = random.Random(1)

    def write_for(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            kind = chance.choice(["write -P 41", "write -P 42", "write -z", "write -z -u", "discard"])
            unit = chance.choice([512, 4096, 65536, 199_680])
            at = chance.randrange((DISK_MIB << 20) // unit - 8) * unit
            io(pair, vm.name, f"{kind} {at} {unit * chance.randint(1, 4)}")

    pair.protect(vm.name)
    for again_after_s in (2.0, 2.6, 3.2):  # about when the copy that begins automatically is under way
        kill_agent(pair)
        io(pair, vm.name, "write -P 40 0 30M")
        pair.product.start_agent()
        write_for(again_after_s)
    end = time.monotonic() + 40
    while pair.state(vm.name) != "protected":
        assert time.monotonic() < end, pair.product.status(vm.name)
        write_for(0.5)
    assert pair.product.status(vm.name)["same_bytes"] > 0
    pair.settle(vm.name)
    assert same_bytes(pair.a.path(vm.disk), replica)
    pair.unprotect(vm.name)
    pair.a.run(["virsh", "destroy", vm.name])
