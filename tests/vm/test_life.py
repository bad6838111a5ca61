# SPDX-License-Identifier: Apache-2.0
"""The whole life of protected VMs on two hosts that use an arbiter: lost backups, takeovers, rejoining, reprotection,
planned moves, daemons that die, several VMs. What it means for a database under load: test_matrix.py, `make soak`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remusdb.reasons import Code
from tests.vm.pair import Pair, eventually, network_of, running_pair, space_alarm
from tools.lab import domains
from tools.lab.etcd import Etcd
from tools.lab.guest import Mode

REPO = Path(__file__).resolve().parents[2]
MEMORY_MAX_MIB = 1100  # room for two standbys of 256 MiB and their QEMUs, not for three


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two hosts with an arbiter; the VM `auto` is protected back by itself."""

    def settle(pair: Pair) -> None:
        for host in (pair.a, pair.b):
            with host.path("/etc/remusdb/host.toml").open("a") as file:
                file.write('\n[vms.auto]\nauto_reprotect = true\n\n[vms.stays]\non_host_shutdown = "nothing"\n')
            with host.path("/etc/remusdb/agent.toml").open("a") as file:
                file.write(f"\n[limits]\nmemory_max_mib = {MEMORY_MAX_MIB}\n")
            hooks = host.path("/etc/remusdb") / "hooks.d"
            hooks.mkdir(mode=0o755)
            hook = hooks / "10-note"
            log = f"/var/lib/remusdb/hook-{host.name}.log"
            hook.write_text(f"#!/bin/sh\n{{ cat; echo; }} >> {log}\n")
            hook.chmod(0o755)

    with running_pair(REPO / "build" / "test" / request.module.__name__, arbiter=True, before_start=settle) as made:
        yield made


@pytest.fixture
def etcd(pair: Pair) -> Iterator[Etcd]:
    """The arbiter, going on after the test whatever was done to it."""
    assert pair.etcd is not None
    yield pair.etcd
    pair.etcd.resume()


@pytest.fixture
def stopping(pair: Pair) -> Iterator[Path]:
    """A `systemctl` of host a alone, which says what is written into it: nothing here runs under systemd."""
    fake = pair.a.path("/run") / "systemctl"
    fake.write_text("#!/bin/sh\necho running\n")
    fake.chmod(0o755)
    systemctl = shutil.which("systemctl")
    assert systemctl is not None
    pair.a.run(["mount", "--bind", "/run/systemctl", systemctl])
    yield fake
    pair.a.run(["umount", systemctl])
    (pair.a.path("/run/remusdb") / "host-stops").unlink(missing_ok=True)


def seen(pair: Pair, on: str, vm: str) -> str:
    """The VM's state as an operator on that host sees it."""
    return pair.product.view(on, vm).state


def until(pair: Pair, on: str, vm: str, *states: str, within_s: float = 20.0) -> None:
    eventually(lambda: seen(pair, on, vm) in states, within_s, f"{vm} on {on} is not {states} but {seen(pair, on, vm)}")


def reprotect(pair: Pair, on: str, vm: str, to: str) -> None:
    pair.product.cli(on, "reprotect", vm, "--to", to, timeout_s=90)
    assert seen(pair, on, vm) == "protected" and seen(pair, to, vm) == "ready"


def test_takeover_rejoin_reprotect_and_back(pair: Pair) -> None:
    """Twice there and back: the old side learns it, keeps its disk aside, cannot be started, and is the backup then."""
    vm = pair.bare()
    pair.protect(vm.name)
    here, there = pair.a, pair.b
    for _ in range(2):
        os.kill(here.qemu_pid(vm.name), signal.SIGKILL)
        until(pair, there.name, vm.name, "promoted")
        assert pair.runs(vm, there)
        told = pair.await_event(vm.name, "quarantined", here.name)
        assert told["term"] > 1 and "disks kept" in told["reason"]
        status = pair.product.status(vm.name, here.name)
        assert status["state"] == "fenced" and status["owner"] == there.name and status["quarantined_disks"]["vda"]
        assert here.run(["test", "-s", status["quarantined_disks"]["vda"]], check=False).returncode == 0
        assert vm.name not in here.run(["virsh", "list", "--all", "--name"]).stdout.split()
        reprotect(pair, there.name, vm.name, here.name)
        here, there = there, here
    pair.settle(vm.name)
    assert pair.differing_blocks(vm.name) == []


def asked_for(promoted: dict[str, Any]) -> Code:
    """Why a takeover was begun, by the event of its end."""
    return Code(promoted["why"]["params"]["why"]["code"])


def test_switchover_there_and_back(pair: Pair) -> None:
    """The VM goes on where it was stopped, on the other host; and from there back."""
    vm = pair.bare()
    pair.protect(vm.name)
    for here, there in ((pair.a, pair.b), (pair.b, pair.a)):
        done = json.loads(pair.product.cli(here.name, "switchover", vm.name, "--json").stdout)
        assert done["to"] == there.name
        assert pair.runs(vm, there)
        assert asked_for(pair.await_event(vm.name, "promoted", there.name)) is Code.SWITCHOVER_ASKED
        pair.await_event(vm.name, "quarantined", here.name)
        reprotect(pair, there.name, vm.name, here.name)


def test_switchover_that_is_declined_leaves_the_vm_running(pair: Pair, etcd: Etcd) -> None:
    """Without the arbiter's answer the backup does not take over: the VM runs on where it is, protected."""
    vm = pair.bare()
    pair.protect(vm.name)
    etcd.pause()
    refused = pair.product.cli("a", "switchover", vm.name, check=False)
    assert refused.returncode == 4 and "runs on here" in refused.stderr, refused.stderr
    etcd.resume()
    assert pair.runs(vm) and pair.state(vm.name) == "protected"
    pair.goes_on(vm.name)


def test_backup_lost_the_vm_goes_on_alone_and_is_protected_again(pair: Pair) -> None:
    vm = pair.bare()
    network = network_of(pair.a)
    pair.protect(vm.name)
    agent = pair.product.daemons["agent", "b"]
    agent.kill()
    agent.wait(10)
    until(pair, "a", vm.name, "held")
    assert pair.await_event(vm.name, "solo")["why"]["code"] == Code.ALONE
    until(pair, "a", vm.name, "solo")
    assert network_of(pair.a) == network and pair.runs(vm)
    pair.product.start_agent("b")
    until(pair, "a", vm.name, "protected", within_s=40)
    until(pair, "b", vm.name, "ready")


def test_etcd_away_changes_nothing_for_a_healthy_pair(pair: Pair, etcd: Etcd) -> None:
    vm = pair.bare()
    pair.protect(vm.name)
    etcd.pause()
    before = pair.product.status(vm.name)
    time.sleep(3)
    after = pair.product.status(vm.name)
    assert (after["state"], after["term"]) == ("protected", before["term"])
    pair.await_epoch(vm.name, before["committed"] + 11)


def test_without_the_arbiters_answer_nobody_takes_over(pair: Pair, etcd: Etcd) -> None:
    vm = pair.bare()
    pair.protect(vm.name)
    etcd.pause()
    os.kill(pair.a.qemu_pid(vm.name), signal.SIGKILL)
    eventually(lambda: pair.product.view("b", vm.name).code is Code.TAKEOVER_REFUSED, 10)
    assert seen(pair, "b", vm.name) == "ready" and vm.name not in pair.running(pair.b)
    refused = pair.product.cli("b", "failover", vm.name, "--yes", check=False)
    assert refused.returncode == 4 and "primary-is-dead" in refused.stderr, refused.stderr
    etcd.resume()
    until(pair, "b", vm.name, "promoted")
    assert pair.runs(vm, pair.b)


def test_an_arbiter_without_space_is_told_before_and_in_the_takeover(pair: Pair, etcd: Etcd) -> None:
    """It asks for as long as it takes, but not without a word; with room again it is decided."""
    vm = pair.bare()
    pair.protect(vm.name)
    space_alarm(pair, etcd, "ACTIVATE")
    try:
        trouble = pair.await_event(vm.name, "trouble", within_s=25)
        assert trouble["details"] == {"what": "arbiter"} and "used up its space" in trouble["reason"]
        status = pair.product.status(vm.name)
        assert status["state"] == "protected" and trouble["reason"] in status["reason"]
        os.kill(pair.a.qemu_pid(vm.name), signal.SIGKILL)
        waiting = pair.await_event(vm.name, "trouble", "b")
        assert "used up its space" in waiting["reason"] and waiting["details"] == {"what": "arbiter"}
        assert "used up its space" in pair.product.standby(vm.name)["reason"]
        assert vm.name not in pair.running(pair.b)
    finally:
        space_alarm(pair, etcd, "DEACTIVATE")
    until(pair, "b", vm.name, "promoted")
    assert pair.runs(vm, pair.b)
    assert [one["event"] for one in pair.events(vm.name, "b")].count("trouble") == 1


def test_host_daemon_dies_and_protection_goes_on(pair: Pair) -> None:
    """Its worker is not its own: epochs go on without it, and the next daemon adopts it."""
    vm = pair.bare()
    pair.protect(vm.name)
    worker = pair.pids(pair.a, "remusdb.worker", vm.name)
    daemon = pair.product.daemons["host", "a"]
    daemon.kill()
    daemon.wait(10)
    before = pair.product.standby(vm.name)["committed"]
    eventually(lambda: pair.product.standby(vm.name)["committed"] > before + 10, 10, "epochs do not go on")
    pair.product.start_host("a")
    pair.await_event(vm.name, "adopted")
    assert pair.pids(pair.a, "remusdb.worker", vm.name) == worker
    pair.await_state(vm.name, "protected")
    pair.unprotect(vm.name)
    eventually(lambda: not pair.pids(pair.a, "remusdb.worker", vm.name), 10, "the worker does not end")


def test_rebooted_primary_rejoins(pair: Pair) -> None:
    """A power failure: the backup has the VM; the old host learns it at its boot, before it does anything."""
    vm = pair.bare()
    pair.a.run(["virsh", "autostart", vm.name])
    pair.protect(vm.name)
    pair.a.kill()
    until(pair, "b", vm.name, "promoted")
    pair.product.reboot("a")
    assert "disks kept" in pair.await_event(vm.name, "quarantined", "a")["reason"]
    assert vm.name not in pair.a.run(["virsh", "list", "--all", "--name"]).stdout.split()
    reprotect(pair, "b", vm.name, "a")


def test_protected_back_by_itself(pair: Pair) -> None:
    vm = domains.define_bare(pair.a, Mode.DIRTIER, name="auto")
    pair.a.run(["virsh", "start", vm.name])
    pair.protect(vm.name)
    os.kill(pair.a.qemu_pid(vm.name), signal.SIGKILL)
    until(pair, "b", vm.name, "protected", within_s=40)
    until(pair, "a", vm.name, "ready")


def test_several_vms_both_ways_until_memory_is_full(pair: Pair) -> None:
    """Two VMs of a are kept on b, one of b on a; what does not fit is refused with figures, and harms nobody."""
    one, two, three = pair.bare(), pair.bare(), pair.bare()
    back = domains.define_bare(pair.b, Mode.DIRTIER, name="back")
    pair.b.run(["virsh", "start", back.name])
    pair.protect(one.name)
    pair.protect(two.name)
    pair.product.cli("b", "protect", back.name, "--to", "a", timeout_s=90)
    refused = pair.protect(three.name, check=False)
    assert refused.returncode == 8 and "MiB" in refused.stderr and str(MEMORY_MAX_MIB) in refused.stderr, refused.stderr
    for on, vm in (("a", one), ("a", two), ("b", back)):
        until(pair, on, vm.name, "protected")
    assert pair.runs(three)
    os.kill(pair.a.qemu_pid(one.name), signal.SIGKILL)
    until(pair, "b", one.name, "promoted")
    for on, vm in (("a", two), ("b", back)):
        until(pair, on, vm.name, "protected")


def test_every_transition_reaches_the_hooks(pair: Pair) -> None:
    vm = pair.bare()
    pair.protect(vm.name)
    pair.product.cli("b", "failover", vm.name, "--yes")
    pair.await_event(vm.name, "quarantined")

    def told(on: str) -> list[str]:
        path = pair.lab.host(on).path("/var/lib/remusdb") / f"hook-{on}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["event"] for line in lines if line and json.loads(line)["vm"] == vm.name]

    eventually(lambda: {"protected", "fenced", "quarantined"} <= set(told("a")), 10, "the hooks of a were not told")
    eventually(lambda: {"protect", "takeover", "promoted"} <= set(told("b")), 10, "the hooks of b were not told")


def test_a_host_that_goes_down_in_good_order_moves_its_vms_first(pair: Pair, stopping: Path) -> None:
    """What remusdb-evacuate.service asks for; a VM that is left there on purpose is protected again after the boot."""
    moves, stays = pair.bare(), domains.define_bare(pair.a, Mode.DIRTIER, name="stays")
    pair.a.run(["virsh", "start", stays.name])
    for vm in (moves, stays):
        pair.protect(vm.name)
    evacuate = ["evacuate", "--if-host-stops", "--json"]
    assert json.loads(pair.product.cli("a", *evacuate).stdout)["note"] == "this host is not shutting down"
    stopping.write_text("#!/bin/sh\necho stopping; exit 1\n")
    told = json.loads(pair.product.cli("a", *evacuate).stdout)
    assert [one["vm"] for one in told["moved"]] == [moves.name]
    assert [(one["vm"], one["exempt"]) for one in told["stayed"]] == [("stays", True)]
    assert pair.running(pair.b) == [moves.name] and pair.runs(moves, pair.b)
    # libvirt-guests shuts the other one down, and the host boots again.
    pair.a.run(["virsh", "destroy", stays.name])
    until(pair, "a", stays.name, "solo")
    stopping.write_text("#!/bin/sh\necho running\n")
    pair.a.run(["virsh", "start", stays.name])
    until(pair, "a", stays.name, "protected", within_s=30)


def test_a_vm_that_ends_with_its_host_before_it_was_moved_is_taken_over(pair: Pair, stopping: Path) -> None:
    """The machine's slice is ended by SIGTERM, on which QEMU exits as if somebody had wanted the VM off."""
    vm = pair.bare()
    pair.protect(vm.name)
    os.kill(pair.a.qemu_pid(vm.name), signal.SIGTERM)
    until(pair, "b", vm.name, "promoted")
    assert pair.runs(vm, pair.b)
