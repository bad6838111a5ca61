# SPDX-License-Identifier: Apache-2.0
"""One part dies while a VM is protected. The VM keeps running, its output is never let go unsafely, status says
why, and a second `protect` works."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remusdb.deadline import Deadline, poll_until
from remusdb.reasons import Code
from tests.vm.pair import Pair, eventually, network_of
from tests.waiting import LIMIT_S
from tools.lab import domains

AT_ONCE_S = 0.0005


def ends_well(pair: Pair, vm: str) -> None:
    """The last step of most tests: it is protected again, unprotect leaves the VM, which is then removed."""
    told = pair.protect(vm, check=False)
    assert told.returncode == 0 or "is protected to b" in told.stderr, told.stderr  # the host daemon was quicker
    assert pair.state(vm) == "protected"
    pair.unprotect(vm)
    assert pair.a.run(["virsh", "domstate", vm]).stdout.strip() == "running"
    pair.a.run(["virsh", "destroy", vm])


def test_unprotect_leaves_everything_as_found(pair: Pair) -> None:
    vm = pair.bare()
    network, xml = network_of(pair.a), pair.a.run(["virsh", "dumpxml", vm.name]).stdout
    pair.protect(vm.name)
    assert network_of(pair.a) != network
    pair.unprotect(vm.name)
    assert network_of(pair.a) == network
    assert pair.a.run(["virsh", "dumpxml", vm.name]).stdout == xml
    assert "No current block job" in pair.a.run(["virsh", "blockjob", vm.name, "vda"]).stdout
    eventually(lambda: vm.name not in pair.b.run(["virsh", "list", "--all", "--name"]).stdout)
    assert pair.pids(pair.a, "nbdkit") == [] and pair.pids(pair.a, "remusdb.capture.guard") == []
    assert pair.runs(vm)
    ends_well(pair, vm.name)


@pytest.mark.parametrize("part", ["remusdb.net.tapgate_process", "nbdkit", "remusdb.capture.guard"])
def test_part_of_the_primary_dies(pair: Pair, part: str) -> None:
    """Gate process, disk mirror or guard: the VM goes on alone, visibly, and is protected again by itself."""
    vm = pair.bare()
    network = network_of(pair.a)
    pair.protect(vm.name)
    pair.kill(pair.a, part)
    assert pair.await_event(vm.name, "solo")["reason"]
    assert pair.runs(vm)
    pair.await_event(vm.name, "resync")
    pair.await_state(vm.name, "protected", within_s=30)
    pair.unprotect(vm.name)
    assert network_of(pair.a) == network
    ends_well(pair, vm.name)


def test_agent_dies_and_comes_back(pair: Pair) -> None:
    """Without the agent output is held: it might have taken over. Once it is back and has nothing, the VM is free."""
    vm = pair.bare()
    pair.protect(vm.name)
    agent = pair.product.daemons["agent", "b"]
    (pid,) = pair.pids(pair.b, "remusdb", "agent")
    os.kill(pid, signal.SIGKILL)
    agent.wait(10)
    status = pair.await_state(vm.name, "held")
    assert status["why"]["code"] == Code.PEER_LOST and "systemctl status remusdb-agent" in status["hint"]
    assert pair.runs(vm)
    refused = pair.product.cli("a", "unprotect", vm.name, check=False)
    assert refused.returncode == 4 and "peer-is-dead" in refused.stderr
    pair.product.start_agent()
    assert pair.await_event(vm.name, "solo")["why"]["code"] == Code.PEER_RENOUNCED
    pair.await_state(vm.name, "protected", within_s=30)
    ends_well(pair, vm.name)


def test_standby_qemu_dies(pair: Pair) -> None:
    vm = pair.bare()
    pair.protect(vm.name)
    os.kill(pair.b.qemu_pid(vm.name), signal.SIGKILL)
    assert pair.await_event(vm.name, "solo")["why"]["code"] == Code.PEER_RENOUNCED
    assert pair.runs(vm)
    ends_well(pair, vm.name)


def test_backup_disk_full(pair: Pair) -> None:
    """The replica cannot take a committed epoch: the agent says so and lets go, the VM runs on unprotected."""
    folder = "/var/lib/remusdb/images"
    pair.b.run(["mkdir", "-p", folder])
    pair.b.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder])
    vm = pair.bare()
    try:
        pair.protect(vm.name)
        write = 'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -P 7 0 6M"'
        pair.a.run(["virsh", "qemu-monitor-command", vm.name, "--hmp", write])
        assert "disk full" in pair.await_event(vm.name, "solo")["reason"]
        assert pair.runs(vm)
    finally:
        pair.b.run(["umount", "-l", folder])
    ends_well(pair, vm.name)


def test_backup_without_room_refuses(pair: Pair) -> None:
    """Not enough room for what the disk holds already: said before anything is copied, exit 8, nothing changed."""
    folder = "/var/lib/remusdb/images"
    pair.b.run(["mkdir", "-p", folder])
    pair.b.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder])
    vm = pair.bare()
    network = network_of(pair.a)
    try:
        write = 'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -P 7 0 6M"'
        pair.a.run(["virsh", "qemu-monitor-command", vm.name, "--hmp", write])
        refused = pair.protect(vm.name, check=False)
        assert refused.returncode == 8 and "MiB are free on b" in refused.stderr, refused.stderr
        assert network_of(pair.a) == network and pair.runs(vm)
    finally:
        pair.b.run(["umount", "-l", folder])
    ends_well(pair, vm.name)


def test_worker_dies_at_any_moment(pair: Pair) -> None:
    """The VM never stays stopped, whatever QEMU waited for; one host goes on with it, and the other one knows."""
    chance = random.Random(1)
    for _ in range(4):
        vm = pair.bare()
        pair.protect(vm.name)
        time.sleep(chance.uniform(0.1, 0.5))
        pair.kill(pair.a, "remusdb.worker")
        assert pair.runs(vm), "the VM stands still after its worker died"
        pair.await_event(vm.name, "resync")
        if pair.await_state(vm.name, "fenced", "protected", within_s=30)["state"] == "fenced":
            assert pair.product.standby(vm.name)["state"] == "promoted" and pair.runs(vm, pair.b)
            again = pair.protect(vm.name, check=False)
            assert again.returncode == 7 and "host b has owned" in again.stderr, again.stderr
            pair.await_event(vm.name, "quarantined")
            assert vm.name not in pair.a.run(["virsh", "list", "--all", "--name"]).stdout
        for host in (pair.a, pair.b):
            host.run(["virsh", "destroy", vm.name], check=False)


def test_worker_dies_in_any_step_of_protect(pair: Pair) -> None:
    """Killed at different moments of the initial sync: the VM runs, and is protected in the end or as it was found."""
    vm = pair.bare()
    network = network_of(pair.a)
    for delay_s in (0.4, 0.7, 1.0, 1.3, 1.6):
        with pair.a.popen(["remusdb", "protect", vm.name, "--to", "b"]) as protect:
            time.sleep(delay_s)
            for pid in pair.pids(pair.a, "remusdb.worker"):
                os.kill(pid, signal.SIGKILL)
            protect.wait(60)
        # Killed before the copy began it is for the operator to ask again; after that it goes on by itself.
        status = pair.await_state(vm.name, "failed", "unprotected", "protected", "fenced", within_s=60)
        if status["state"] == "fenced":
            return  # killed once it was protected, and the backup was faster
        assert pair.runs(vm)
        assert vm.name not in pair.running(pair.b), "a replica that was never complete was promoted"
        if status["state"] == "protected":
            pair.product.cli("a", "unprotect", vm.name)
        assert network_of(pair.a) == network
    ends_well(pair, vm.name)


def test_vm_that_is_shut_down_is_not_resurrected(pair: Pair) -> None:
    """Also one with writes in flight, whose QEMU takes a second to be gone for libvirt."""
    for load in (False, True, True):
        vm = pair.bare()
        pair.protect(vm.name)
        if load:
            write = 'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "aio_write -P 7 0 8M"'
            pair.a.run(["virsh", "qemu-monitor-command", vm.name, "--hmp", write])
        pair.a.run(["virsh", "destroy", vm.name])
        status = pair.await_state(vm.name, "unprotected")
        assert status["why"]["code"] in (Code.ENDED_BY_DESTROY, Code.ENDED), status
        time.sleep(1.0)  # twice the silence limit
        assert pair.product.standby(vm.name)["state"] == "empty"


def test_vm_that_is_shut_down_is_not_resurrected_where_libvirt_is_slow_to_tell(pair: Pair) -> None:
    """QEMU is gone and reaped, so its exit code is lost; libvirt, on a busy host, says a second later who ended it."""
    vm = pair.bare()
    pair.protect(vm.name)
    qemu = pair.a.qemu_pid(vm.name)
    (libvirtd,) = pair.pids(pair.a, "libvirtd")
    destroy = pair.a.popen(["virsh", "destroy", vm.name])
    try:
        assert poll_until(lambda: not Path(f"/proc/{qemu}").exists(), Deadline.after(LIMIT_S), AT_ONCE_S)
        os.kill(libvirtd, signal.SIGSTOP)
        time.sleep(1.0)  # twice the silence limit
    finally:
        os.kill(libvirtd, signal.SIGCONT)
        destroy.wait(LIMIT_S)
    assert pair.await_state(vm.name, "unprotected")["why"]["code"] in (Code.ENDED_BY_DESTROY, Code.ENDED)
    assert pair.product.standby(vm.name)["state"] == "empty"


@contextlib.contextmanager
def init_reaps_after(pair: Pair, seconds: float) -> Iterator[None]:
    """What libvirt starts on a from here on is reaped so late, as the init of a container may do."""

    def restart(reaps_after_s: float) -> None:
        (pid,) = pair.pids(pair.a, "libvirtd")
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: not pair.pids(pair.a, "libvirtd"), otherwise="libvirtd does not end")
        pair.a.reaps_after_s = reaps_after_s
        pair.a.start_libvirtd()
        pair.a.run(["virsh", "version"])

    restart(seconds)
    try:
        yield
    finally:
        restart(0.0)


def test_who_ended_a_qemu_is_known_also_where_init_reaps_late(pair: Pair) -> None:
    """Until it is reaped libvirt says nothing, and the process itself tells: longer than the backup is silent for."""
    with init_reaps_after(pair, 2.0):
        ended, killed = pair.bare(), pair.bare()
        for vm in (ended, killed):
            pair.protect(vm.name)
        pair.a.run(["virsh", "destroy", ended.name])
        pair.await_state(ended.name, "unprotected")
        assert pair.product.standby(ended.name)["state"] == "empty"
        pair.a.kill_qemu(killed.name)
        eventually(lambda: pair.product.standby(killed.name)["state"] == "promoted", 10, "nobody took it over")
        assert pair.runs(killed, pair.b)
        pair.b.run(["virsh", "destroy", killed.name])
        pair.await_event(killed.name, "quarantined")


def test_link_cut_for_300_ms_changes_nothing(pair: Pair) -> None:
    vm = pair.bare()
    pair.protect(vm.name)
    for _ in range(3):
        pair.a.cut_link()
        time.sleep(0.3)
        pair.a.restore_link()
        time.sleep(1.0)
    pair.await_state(vm.name, "protected")
    assert pair.product.standby(vm.name)["state"] == "ready"
    pair.goes_on(vm.name)
    pair.unprotect(vm.name)
    pair.a.run(["virsh", "destroy", vm.name])


def test_operator_fails_over(pair: Pair) -> None:
    """`remusdb failover` on the backup: the new term fences the primary, which stays silent."""
    vm = pair.bare()
    pair.protect(vm.name)
    pair.product.cli("b", "failover", vm.name, "--yes")
    assert pair.product.standby(vm.name)["state"] == "promoted"
    assert pair.runs(vm, pair.b)
    pair.await_state(vm.name, "fenced")
    pair.await_event(vm.name, "quarantined")
    pair.b.run(["virsh", "destroy", vm.name])


def test_garbage_on_the_agents_port(pair: Pair) -> None:
    """What is not TLS, or not of our CA, or not our protocol, ends its own connection and nothing else."""
    vm = pair.bare()
    pair.protect(vm.name)
    script = (
        "import socket,sys\n"
        f"for data in (b'', b'GET / HTTP/1.0\\r\\n\\r\\n', b'\\x16\\x03\\x01' + b'A' * 70000):\n"
        f"    with socket.create_connection(('{pair.b.ip4}', 7473), 3) as s:\n"
        "        s.sendall(data)\n"
    )
    pair.a.run(["python3", "-c", script])
    assert pair.state(vm.name) == "protected"
    assert pair.product.daemons["agent", "b"].poll() is None
    pair.unprotect(vm.name)
    pair.a.run(["virsh", "destroy", vm.name])


def test_protect_refuses_what_it_cannot_protect(pair: Pair) -> None:
    """A VM that is not there, one that does not run, an unknown host: a clear error, nothing changed."""
    assert pair.protect("nosuch", check=False).returncode in (1, 8)
    vm = pair.bare()
    elsewhere = pair.product.cli("a", "protect", vm.name, "--to", "mars", check=False)
    assert elsewhere.returncode == 2 and "mars" in elsewhere.stderr
    pair.a.run(["virsh", "destroy", vm.name])
    stopped = pair.protect(vm.name, check=False)
    assert stopped.returncode in (1, 8) and "not running" in stopped.stderr


def test_certificate_of_another_ca(pair: Pair) -> None:
    vm = pair.bare()
    tls = pair.a.path("/etc/remusdb/tls")
    kept = {path: path.read_bytes() for path in tls.glob("*.pem")}
    out = str(pair.lab.folder / "other")
    pair.a.run(["remusdb", "certs", "--out", out, "--host", f"a={pair.a.ip4}"])
    for path in kept:
        path.write_bytes((pair.lab.folder / "other" / "a" / path.name).read_bytes())
    refused = pair.protect(vm.name, check=False)
    assert refused.returncode == 5 and "certificate" in refused.stderr.lower(), refused.stderr
    for path, data in kept.items():
        path.write_bytes(data)
    assert pair.runs(vm)
    ends_well(pair, vm.name)


def test_check_looks_at_both_sides(pair: Pair) -> None:
    """Everything required is there, and what the backup can run is compared with the VM; nothing is changed."""
    vm = pair.bare()
    network = network_of(pair.a)
    told = json.loads(pair.product.cli("a", "check", vm.name, "--to", "b", "--json").stdout)["checks"]
    named = {check["name"]: check for check in told}
    assert [check["name"] for check in told if check["level"] == "required" and not check["ok"]] == []
    assert "QEMU" in named["peer QEMU"]["detail"] and domains.MACHINE in named["peer machine"]["detail"]
    assert network_of(pair.a) == network and pair.runs(vm)
