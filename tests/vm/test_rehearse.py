# SPDX-License-Identifier: Apache-2.0
"""`remusdb rehearse`: a copy of the replica proves that it runs, protection goes on, and nothing of it stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.vm.pair import Pair, eventually, network_of
from tests.vm.test_replica import same_bytes
from tools.lab import domains, image
from tools.lab.guest import Mode
from tools.lab.host import Host


def rehearse(pair: Pair, vm: str, *options: str, code: int = 0) -> dict[str, Any]:
    """`remusdb rehearse VM --json` on the backup: its result."""
    done = pair.product.cli("b", "rehearse", vm, "--json", *options, check=False, timeout_s=90)
    assert done.returncode == code, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def begin(pair: Pair, vm: str, seconds: int, running: bool = True) -> subprocess.Popen[str]:
    """A rehearsal in the background, given back when its copy runs, or begins to be made."""
    command = ["remusdb", "rehearse", vm, "--seconds", str(seconds)]
    folder = pair.b.path(f"/var/lib/remusdb/images/{vm}/rehearsal")
    eventually(lambda: not folder.exists(), 20, "the copy of the standby's proof stays")
    process = pair.b.popen(command, log=Path(os.devnull))
    eventually(lambda: f"{vm}-rehearsal" in pair.running(pair.b) if running else folder.exists(), 20, "no copy")
    return process


def leftovers(host: Host, vm: str) -> list[str]:
    """What is there of a rehearsal: domains, QEMU processes, links, files."""
    found = [name for name in host.run(["virsh", "list", "--all", "--name"]).stdout.split() if "rehearsal" in name]
    for pid in host.pids():
        line = Path(f"/proc/{pid}/cmdline")
        if line.exists() and f"{vm}-rehearsal".encode() in line.read_bytes():
            found.append(f"process {pid}")
    found += [link["ifname"] for link in links(host) if link["ifname"].startswith("rdbr")]
    folder = host.path(f"/var/lib/remusdb/images/{vm}/rehearsal")
    return found + ([str(folder)] if folder.exists() else [])


def links(host: Host) -> list[dict[str, Any]]:
    """The host's links."""
    return list(json.loads(host.run(["ip", "-j", "link"]).stdout))


def test_bare_vm(pair: Pair) -> None:
    """The copy prints; the primary's epochs, pauses and releases go on; the replica is still the primary."""
    vm = pair.bare()
    pair.protect(vm.name)
    network = network_of(pair.b)
    process = begin(pair, vm.name, 8)
    before = pair.product.status(vm.name)
    assert network_of(pair.b) == network, "the copy has a link on its host"
    time.sleep(2)
    during = pair.product.status(vm.name)
    standby = pair.product.standby(vm.name)
    assert process.wait(30) == 0
    assert during["state"] == "protected" and standby["committed"] > before["committed"] + 10
    assert standby["committed"] - standby["applied"] > 10, "the replica did not stand still"
    assert during["pause_ms_p99"] < 1000
    assert leftovers(pair.b, vm.name) == [] and network_of(pair.b) == network
    result = rehearse(pair, vm.name, "--seconds", "1")
    checks = {check["name"]: check for check in result["checks"]}
    assert result["ok"] and checks["runs"]["ok"] and checks["serial"]["ok"], result
    assert result["held_back_epochs"] > 3 and result["term"] == 1
    refused = rehearse(pair, vm.name, "--seconds", "1", "--tcp", "5432", code=1)
    assert not refused["ok"], "a port was asked for, and nothing listens there"
    pair.settle(vm.name)
    assert pair.differing_blocks(vm.name) == []
    assert same_bytes(pair.a.path(vm.disk), pair.b.path(f"/var/lib/remusdb/images/{vm.name}/vda.raw"))
    assert leftovers(pair.b, vm.name) == []
    pair.a.run(["virsh", "resume", vm.name])
    pair.unprotect(vm.name)
    eventually(lambda: not pair.b.path(f"/var/lib/remusdb/images/{vm.name}").exists())


@pytest.mark.parametrize(("part", "running"), [("qemu", True), ("qemu", False), ("host", True)])
def test_takeover_comes_first(pair: Pair, part: str, running: bool) -> None:
    """The primary dies while a copy starts or runs: the VM is on the backup within seconds, the copy is gone."""
    vm = pair.bare()
    pair.protect(vm.name)
    process = begin(pair, vm.name, 60, running)
    killed = time.time_ns()
    pair.a.kill_qemu(vm.name) if part == "qemu" else pair.a.kill()
    eventually(lambda: pair.product.standby(vm.name).get("resumed_at_ns"), 15, "no takeover")
    assert (pair.product.standby(vm.name)["resumed_at_ns"] - killed) / 1e9 < 5
    assert pair.runs(vm, pair.b)
    assert process.wait(10) == 4
    eventually(lambda: leftovers(pair.b, vm.name) == [], 5)
    assert vm.name in pair.running(pair.b)
    if part == "host":
        pair.product.reboot("a")


def test_session_end_comes_first(pair: Pair) -> None:
    vm = pair.bare()
    pair.protect(vm.name)
    process = begin(pair, vm.name, 60)
    pair.unprotect(vm.name)
    assert process.wait(10) == 4
    eventually(lambda: not pair.b.path(f"/var/lib/remusdb/images/{vm.name}").exists(), 10)
    assert leftovers(pair.b, vm.name) == []


def test_agent_dies_while_a_copy_runs(pair: Pair) -> None:
    """What the killed agent leaves behind is removed when the next one starts."""
    vm = pair.bare()
    pair.protect(vm.name)
    process = begin(pair, vm.name, 60)
    agent = pair.product.daemons["agent", "b"]
    (pid,) = pair.pids(pair.b, "remusdb", "agent")
    os.kill(pid, signal.SIGKILL)
    agent.wait(10)
    assert process.wait(10) == 5
    assert leftovers(pair.b, vm.name) != []
    pair.product.start_agent()
    eventually(lambda: leftovers(pair.b, vm.name) == [], 15, "leftovers stay")
    assert pair.runs(vm)


def test_refusals(pair: Pair) -> None:
    """On the wrong host, without a replica, or twice at once: said clearly."""
    vm = pair.bare()
    wrong = pair.product.cli("b", "rehearse", vm.name, check=False)
    assert wrong.returncode == 3 and "no replica" in wrong.stderr, wrong.stderr
    pair.protect(vm.name)
    wrong = pair.product.cli("a", "rehearse", vm.name, check=False)
    assert wrong.returncode == 3 and "it is b" in wrong.stderr, wrong.stderr
    process = begin(pair, vm.name, 3)
    twice = pair.product.cli("b", "rehearse", vm.name, check=False)
    assert twice.returncode == 4 and "runs already" in twice.stderr, twice.stderr
    assert process.wait(30) == 0
    pair.unprotect(vm.name)
    gone = pair.product.cli("b", "rehearse", vm.name, check=False)
    assert gone.returncode == 3 and "no replica" in gone.stderr, gone.stderr


def test_vm_with_everything_that_a_desktop_tool_adds(pair: Pair) -> None:
    """Display, guest agent's channel, a second disk and console, private QMP socket: none clashes with the standby."""
    vm = domains.define_bare(pair.a, Mode.DIRTIER, name="full")
    second = "/var/lib/libvirt/images/full-b.qcow2"
    pair.a.run(["qemu-img", "create", "-q", "-f", "qcow2", second, "64M"])
    more = f"""<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{second}'/>
      <target dev='sda' bus='scsi'/></disk><controller type='scsi' model='virtio-scsi'/>
      <interface type='bridge'><source bridge='br0'/><model type='e1000e'/></interface>
      <console type='pty'><target type='virtio'/></console><input type='tablet' bus='usb'/>
      <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
      <graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1'/><video><model type='vga'/></video>
      <sound model='ich9'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng></devices>"""
    xml = pair.a.run(["virsh", "dumpxml", "--inactive", vm.name]).stdout.replace("</devices>", more)
    pair.a.run(["virsh", "define", "/dev/stdin"], stdin=xml)
    pair.product.cli("a", "prepare", vm.name)
    pair.a.run(["virsh", "start", vm.name])
    pair.protect(vm.name)
    result = rehearse(pair, vm.name, "--seconds", "1")
    checks = {check["name"]: check for check in result["checks"]}
    assert result["ok"] and not checks["agent"]["ok"], result
    pair.a.kill_qemu(vm.name)
    eventually(lambda: pair.product.standby(vm.name).get("resumed_at_ns"), 15, "no takeover")
    assert pair.runs(vm, pair.b)


# What libvirt asks of a guest agent before it believes it, and the ping.
AGENT = """#!/usr/bin/python3
import json, os, time
path, waiting = "/dev/virtio-ports/org.qemu.guest_agent.0", b""
while not os.path.exists(path):
    time.sleep(0.1)
port = os.open(path, os.O_RDWR)
while True:
    data = os.read(port, 4096)
    if not data:  # nobody is connected on the host's side
        time.sleep(0.1)
    waiting += data
    *lines, waiting = waiting.split(b"\\n")
    for asked in [json.loads(line.lstrip(b"\\xff")) for line in lines]:
        delimited = asked["execute"] == "guest-sync-delimited"
        answer = {"return": asked.get("arguments", {}).get("id", {})}
        os.write(port, b"\\xff" * delimited + json.dumps(answer).encode() + b"\\n")
"""
UNIT = """[Service]
ExecStartPre=-/sbin/modprobe virtio_console
ExecStart=/usr/local/sbin/agent
"""


def put_agent(pair: Pair, vm: domains.Vm, folder: Path) -> None:
    """A guest agent in the VM, which must be off: on its disk, and the channel in its definition."""
    (folder / "agent").write_text(AGENT)
    (folder / "agent.service").write_text(UNIT)
    unit = "/etc/systemd/system/agent.service"
    commands = f"""write {folder}/agent /usr/local/sbin/agent
set_inode_field /usr/local/sbin/agent mode 0100755
write {folder}/agent.service {unit}
symlink /etc/systemd/system/multi-user.target.wants/agent.service {unit}
"""
    disk = str(pair.a.path(vm.disk))
    subprocess.run(["debugfs", "-w", "-f", "/dev/stdin", disk], input=commands, text=True, check=True, timeout=30)
    channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices>"
    xml = pair.a.run(["virsh", "dumpxml", "--inactive", vm.name]).stdout.replace("</devices>", channel)
    pair.a.run(["virsh", "define", "/dev/stdin"], stdin=xml)


def test_postgres_and_the_guest_agent_answer_in_the_copy(pair: Pair, tmp_path: Path) -> None:
    """The port is reached in the copy alone, and the clients of the VM itself notice nothing."""
    vm = domains.define_db(pair.a, image.ensure())
    put_agent(pair, vm, tmp_path)
    pair.a.run(["virsh", "start", vm.name])
    psql = ["psql", "-h", domains.DB_IP4, "-U", "postgres", "-Atc", "select 1", "bank"]
    eventually(lambda: pair.lab.client.run(psql, check=False).returncode == 0, 200, "no PostgreSQL")
    ping = ["virsh", "qemu-agent-command", vm.name, '{"execute":"guest-ping"}']
    eventually(lambda: pair.a.run(ping, check=False).returncode == 0, 30, "no guest agent")
    pair.protect(vm.name)
    process = begin(pair, vm.name, 4)
    assert pair.lab.client.run(psql).stdout.strip() == "1"
    assert process.wait(60) == 0
    result = rehearse(pair, vm.name, "--tcp", "5432", "--seconds", "4")
    checks = {check["name"]: check for check in result["checks"]}
    assert all(checks[name]["ok"] for name in ("network", "tcp", "agent", "runs")), result
    assert pair.lab.client.run(psql).stdout.strip() == "1"
    assert pair.state(vm.name) == "protected"
