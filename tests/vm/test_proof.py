# SPDX-License-Identifier: Apache-2.0
"""The standby is proven before it is promised: what QEMU would refuse at a takeover, `protect` refuses."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remusdb.reasons import Code
from tests.vm.pair import Pair, eventually, network_of, running_pair
from tests.vm.test_rehearse import leftovers
from tools.lab import domains
from tools.lab.guest import Mode
from tools.lab.host import Host

log = logging.getLogger(__name__)

REPO = Path(__file__).resolve().parents[2]
EMULATOR = "/var/lib/libvirt/emulator"  # of each host its own, as after an upgrade of one of them
QEMU = "/usr/bin/qemu-system-x86_64"
LACKING = "vmcoreinfo"  # a device with a section of its own in the state; nothing of it is in the memory map


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two hosts; the backup's agent is told its own emulator."""

    def settle(pair: Pair) -> None:
        config = pair.b.path("/etc/remusdb/agent.toml")
        config.write_text(config.read_text().replace("[agent]\n", f'[agent]\nemulator = "{EMULATOR}"\n', 1))
        emulator(pair.b)

    with running_pair(REPO / "build" / "test" / request.module.__name__, before_start=settle) as made:
        yield made


def emulator(host: Host, more: str = "", copies_wait_s: int = 0) -> None:
    """The emulator of `own_emulator` on this host from here on: with `more` options, slow to start a copy."""
    script = host.path(EMULATOR)
    script.write_text(
        f"""#!/bin/sh
case "$*" in
*guest=*-rehearsal*) sleep {copies_wait_s}; exec {QEMU} "$@" {more};;
*guest=*) exec {QEMU} "$@" {more};;
*) exec {QEMU} "$@";;
esac
"""
    )
    script.chmod(0o755)


def own_emulator(pair: Pair, name: str) -> domains.Vm:
    """A running VM whose emulator is another file on each host."""
    vm = domains.define_bare(pair.a, Mode.DIRTIER, name=name)
    xml = pair.a.run(["virsh", "dumpxml", "--inactive", vm.name]).stdout
    pair.a.run(["virsh", "define", "/dev/stdin"], stdin=xml.replace(QEMU, EMULATOR))
    pair.a.run(["virsh", "start", vm.name])
    eventually(lambda: len(vm.serial_text(pair.a)) > 20, 20, f"{vm.name} prints nothing")
    return vm


def begin(pair: Pair, vm: str) -> subprocess.Popen[str]:
    """`remusdb protect` in the background, given back in the middle of the proof."""
    process = pair.a.popen(["remusdb", "protect", vm, "--to", "b"], log=Path(os.devnull))
    folder = pair.b.path(f"/var/lib/remusdb/images/{vm}/rehearsal")
    eventually(folder.exists, 30, "no proof")
    return process


def test_refusal_is_protects(pair: Pair) -> None:
    """QEMU's own words, and the VM is as it was found: it runs, its network, its disks, its autostart."""
    emulator(pair.a, f"-device {LACKING}")
    emulator(pair.b)
    vm = own_emulator(pair, "refused")
    pair.a.run(["virsh", "autostart", vm.name])
    network = network_of(pair.a)
    refused = pair.protect(vm.name, check=False)
    assert refused.returncode == 8 and LACKING in refused.stderr and "refuses" in refused.stderr, refused.stderr
    assert pair.runs(vm) and pair.state(vm.name) == "failed" and LACKING in pair.product.status(vm.name)["reason"]
    assert network_of(pair.a) == network
    assert "mirror" not in pair.a.run(["virsh", "dumpxml", vm.name]).stdout
    assert "enable" in pair.a.run(["virsh", "dominfo", vm.name]).stdout.split("Autostart:")[1].split("\n")[0]
    assert LACKING in pair.await_event(vm.name, "unproven", "b")["reason"]
    eventually(lambda: vm.name not in pair.b.run(["virsh", "list", "--name"]).stdout.split(), 10, "the standby stays")
    emulator(pair.b, f"-device {LACKING}")
    before = time.time_ns()
    assert "prove the standby" in pair.protect(vm.name).stderr
    here, there = pair.product.status(vm.name), pair.product.standby(vm.name)
    for told in (here, there):
        assert before < told["proven_at_ns"] < time.time_ns() and told["unproven"] == "", told
        assert told["proven_epoch"] >= 1 and 0 < told["proven_ms"] < 20_000
    assert here["why"]["code"] == Code.FOLLOWING and here["hint"] == ""
    eventually(lambda: leftovers(pair.b, vm.name) == [], 10, "something of the proof stays")
    emulator(pair.b)  # nobody waits for an answer now: what can be had is kept, and said
    renew(pair, vm.name)
    told = pair.await_event(vm.name, "unproven")
    assert LACKING in told["reason"] and told["why"]["code"] == Code.UNPROVEN_REFUSED
    for status in (pair.product.status(vm.name), pair.product.standby(vm.name)):
        assert LACKING in status["unproven"] and status["proven_at_ns"] is None, status
    assert LACKING in pair.product.status(vm.name)["reason"]
    moved = pair.product.cli("a", "switchover", vm.name, check=False)
    assert moved.returncode == 4 and LACKING in moved.stderr, moved.stderr
    pair.a.kill_qemu(vm.name)
    promoted = pair.await_event(vm.name, "promoted", "b", within_s=30)
    assert promoted["why"]["code"] == Code.RESUMED_COLD and LACKING in promoted["reason"], promoted
    assert pair.runs(vm, pair.b)


def renew(pair: Pair, vm: str) -> None:
    """The agent is started again: a fresh session begins automatically."""
    pair.kill(pair.b, "remusdb", "agent")
    term = pair.product.status(vm)["term"]
    pair.product.daemons["agent", "b"].wait(10)
    pair.product.start_agent()
    eventually(lambda: pair.product.status(vm)["term"] > term and pair.state(vm) == "protected", 60, "no session")


def test_takeover_comes_first(pair: Pair) -> None:
    """The primary dies while its standby is being proven: the VM is on the backup as fast as ever, the copy is gone."""
    emulator(pair.a)
    emulator(pair.b, copies_wait_s=8)
    vm = own_emulator(pair, "early")
    process = begin(pair, vm.name)
    killed = time.time_ns()
    pair.a.kill_qemu(vm.name)
    eventually(lambda: pair.product.standby(vm.name).get("resumed_at_ns"), 15, "no takeover")
    standby = pair.product.standby(vm.name)
    took_ms = (standby["resumed_at_ns"] - standby["decided_at_ns"]) / 1e6
    assert took_ms < 2000 and (standby["resumed_at_ns"] - killed) / 1e9 < 5, standby
    log.info("taken over within %.0f ms of the decision", took_ms)
    assert process.wait(30) == 1, "protect says yes to a VM that died"
    assert pair.runs(vm, pair.b) and pair.await_event(vm.name, "promoted", "b")["why"]["code"] == Code.RESUMED_WARM
    eventually(lambda: leftovers(pair.b, vm.name) == [], 20, "something of the proof stays")


def test_agent_dies_in_the_middle(pair: Pair) -> None:
    """The next agent removes what is left, and the VM gets its protection, and the proof, by itself."""
    emulator(pair.a)
    emulator(pair.b, copies_wait_s=5)
    vm = own_emulator(pair, "killed")
    process = begin(pair, vm.name)
    pair.kill(pair.b, "remusdb", "agent")
    pair.product.daemons["agent", "b"].wait(10)
    emulator(pair.b)
    pair.product.start_agent()
    assert process.wait(30) == 1
    pair.await_state(vm.name, "protected", within_s=60)
    assert pair.runs(vm) and pair.product.status(vm.name)["proven_at_ns"]
    eventually(lambda: leftovers(pair.b, vm.name) == [], 20, "leftovers stay")
