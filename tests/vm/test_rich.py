# SPDX-License-Identifier: Apache-2.0
"""A VM as real hosts have them: several CPUs, NICs and kinds of disks, and a name that no test would choose."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from remusdb.capture.memory import ProcessMemory
from remusdb_agents.backup.standby.nvram import FLASH
from tests.vm.pair import Pair, eventually, running_pair
from tools.lab import domains, loops, rich, uefi
from tools.lab.domains import BARE_MAC
from tools.lab.host import Host
from tools.lab.links import socket_in

REPO = Path(__file__).resolve().parents[2]
NAME = 'openshift-cnv_R&D\'s <"db">\\ tab\t' + "x" * 41  # 73 bytes
ETH_P_ALL = 3
LARGER_MIB = rich.DISK_MIB + 4
MARK = b"beyond the guest's disk"


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two hosts; the backup has a block device for one of the VM's disks, and it is larger."""

    def settle(pair: Pair) -> None:
        device = loops.attach(pair.lab.folder / "b-vdb.img", LARGER_MIB)
        with device.open("r+b") as file:
            file.seek(rich.DISK_MIB << 20)
            file.write(MARK)
        name = NAME.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
        with pair.b.path("/etc/remusdb/agent.toml").open("a") as config:
            config.write(f'\n[disks."{name}"]\nvdb = "{device}"\n')
        rich.add_bridge(pair.b)

    with running_pair(REPO / "build" / "test" / request.module.__name__, before_start=settle) as made:
        yield made


def listen(host: Host, bridge: str) -> socket.socket:
    """Whatever passes this bridge of the host."""
    sock = socket_in(host.netns, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.bind((bridge, ETH_P_ALL))
    sock.setblocking(False)
    return sock


def heard(sock: socket.socket, mac: str) -> bool:
    """Whether a frame of this NIC came since the last question."""
    found = False
    while True:
        try:
            frame = sock.recv(2048)
        except BlockingIOError:
            return found
        found |= frame[6:12] == bytes.fromhex(mac.replace(":", ""))


def write(pair: Pair, vm: str, number: int, what: str) -> None:
    """A write of the guest's, as far as its disk can tell."""
    order = f'qemu-io -d /machine/peripheral/virtio-disk{number}/virtio-backend "{what}"'
    said = pair.a.run(["virsh", "qemu-monitor-command", vm, "--hmp", order]).stdout
    assert "failed" not in said and "rror" not in said, said


def same(host: Host, kind: str, mine: str, theirs: Path) -> bool:
    """Whether the guest would read the same from its disk on this host and from a replica."""
    command = ["qemu-img", "compare", "-U", "-f", kind, "-F", "raw", mine, str(theirs)]
    return host.run(command, check=False).returncode == 0


def test_takeover_of_a_vm_with_everything(pair: Pair) -> None:
    """Warm, with the same disks byte for byte, both NICs gated until then, and what libvirt knew of the VM."""
    assert len(NAME.encode()) == 73
    made = rich.define(pair.a, pair.lab.folder, NAME)
    vm = made.vm
    pair.a.run(["virsh", "autostart", NAME])
    pair.product.cli("a", "prepare", NAME)
    pair.start(vm)
    write(pair, NAME, 2, "write -P 1 0 4M")
    pair.protect(NAME)
    status = pair.product.status(NAME)
    assert status["state"] == "protected" and status["monitor"] == "private"
    assert sorted(gate["mac"] for gate in pair.product.durable("a", NAME).gates) == sorted([BARE_MAC, rich.SECOND_MAC])
    for number in range(4):
        write(pair, NAME, number, f"write -P {16 + number} {number}M 512k")
        write(pair, NAME, number, "write -z 1M 4k")
        write(pair, NAME, number, "discard 2M 64k")
    images = next(pair.b.path("/var/lib/remusdb/images").iterdir())
    device = loops_of(pair)
    replicas = {target: images / f"{target}.raw" for target in ("vda", "vdc", "vdd")}
    assert not (images / "vdb.raw").exists()

    pair.settle(NAME)
    assert pair.differing_blocks(NAME) == []
    for target, replica in replicas.items():
        assert same(pair.a, *made.disks[target], replica), target
    assert device.read_bytes()[: rich.DISK_MIB << 20] == Path(made.disks["vdb"][1]).read_bytes()
    pair.a.run(["virsh", "resume", NAME])

    sockets = {rich.SECOND_MAC: listen(pair.a, rich.SECOND_BRIDGE), BARE_MAC: listen(pair.a, "br0")}
    announce = ["virsh", "qemu-monitor-command", NAME, '{"execute": "announce-self", "arguments": %s}']
    announce[-1] %= '{"initial": 20, "max": 20, "rounds": 3, "step": 10}'
    pair.a.run(announce)
    eventually(lambda: all(heard(sock, mac) for mac, sock in sockets.items()), 5, "a NIC's frames do not come out")
    (agent,) = pair.pids(pair.b, "remusdb", "agent")
    os.kill(agent, signal.SIGSTOP)
    pair.await_state(NAME, "held")
    for mac, sock in sockets.items():
        heard(sock, mac)
    pair.a.run(announce)
    time.sleep(0.5)
    for mac, sock in sockets.items():
        assert not heard(sock, mac), f"{mac} speaks while output is held"
        sock.close()
    os.kill(agent, signal.SIGCONT)
    pair.await_state(NAME, "protected")

    pair.product.cli("b", "rehearse", NAME, "--seconds", "1")
    pair.a.kill()
    eventually(lambda: pair.product.standby(NAME).get("resumed_at_ns"), 15, "no takeover")
    assert pair.product.standby(NAME)["why"]["code"] == "resumed-warm"
    assert pair.runs(vm, pair.b)
    eventually(lambda: NAME in defined(pair.b, "--persistent"), 10, "it is not defined")
    eventually(lambda: NAME in defined(pair.b, "--autostart"), 10, "it does not start with its host")
    root = ET.fromstring(pair.b.run(["virsh", "dumpxml", "--inactive", NAME]).stdout)
    assert root.findtext("name") == NAME and root.findtext("genid") == rich.GENID and root.findtext("vcpu") == "2"
    assert [disk.get("type") for disk in root.iterfind("./devices/disk")] == ["file", "block", "file", "file", "file"]
    assert len(root.findall("./devices/interface")) == 2
    for target, replica in replicas.items():
        assert same(pair.a, *made.disks[target], replica), target
    disk = device.read_bytes()
    assert disk[: rich.DISK_MIB << 20] == Path(made.disks["vdb"][1]).read_bytes()
    assert disk[rich.DISK_MIB << 20 :].startswith(MARK)
    size = pair.b.run(["virsh", "domblkinfo", NAME, "vdb"]).stdout.splitlines()[0].split()[-1]
    assert int(size) == rich.DISK_MIB << 20, "the guest's disk has grown"
    pair.product.reboot("a")


def defined(host: Host, *options: str) -> str:
    """The names of these VMs, a line each."""
    return host.run(["virsh", "list", "--all", "--name", *options]).stdout


def loops_of(pair: Pair) -> Path:
    """The backup's block device."""
    shown = subprocess.run(["losetup", "-nO", "NAME", "-j", str(pair.lab.folder / "b-vdb.img")], capture_output=True)
    return Path(shown.stdout.decode().strip())


def test_variables_of_a_uefi_guest(pair: Pair) -> None:
    """They are on the backup as of the last epoch, in its QEMU's flash and in the file that it would be booted from."""
    vm = uefi.define(pair.a)
    pair.a.run(["virsh", "start", vm.name])
    eventually(lambda: "round 2 done" in vm.serial_text(pair.a), 200, "the firmware's shell does not run the script")
    pair.protect(vm.name)
    first = rounds(vm, pair.a)
    eventually(lambda: rounds(vm, pair.a) > first + 2, 30, "no variable is written")
    pair.settle(vm.name)
    assert pair.differing_blocks(vm.name) == []
    replica = pair.b.path(f"/var/lib/remusdb/images/{vm.name}/nvram.fd")
    assert replica.read_bytes() == pair.a.path(str(uefi.variables(vm.name))).read_bytes()
    pair.a.run(["virsh", "resume", vm.name])
    pair.product.cli("b", "rehearse", vm.name, "--seconds", "1")
    pair.a.kill_qemu(vm.name)
    eventually(lambda: pair.product.standby(vm.name).get("resumed_at_ns"), 15, "no takeover")
    assert pair.product.standby(vm.name)["why"]["code"] == "resumed-warm"
    eventually(lambda: rounds(vm, pair.b) > first + 4, 30, "it does not go on")
    pair.stop(pair.b, vm.name)
    time.sleep(0.5)
    last = rounds(vm, pair.b)
    flash = pair.blocks(pair.b, vm.name)[FLASH]
    memory = ProcessMemory(pair.b.qemu_pid(vm.name)).read(flash.address, np.arange(flash.pages, dtype=np.int64))
    assert replica.read_bytes() == memory.tobytes()
    eventually(lambda: vm.name in defined(pair.b, "--persistent"), 10, "it is not defined")
    pair.b.run(["virsh", "destroy", vm.name])
    pair.b.run(["virsh", "start", vm.name])
    eventually(lambda: "round 1 done" in vm.serial_text(pair.b), 200, "it does not boot from the variables")
    shown = re.search(r"- round - \w+ Bytes\s+((?:[0-9A-F]{2} )+)", vm.serial_text(pair.b))
    assert shown is not None, "the variable is gone"
    assert int(bytes.fromhex(shown[1]).decode("utf-16-le")) in (last, last + 1), "it is written before it is told"


def rounds(vm: domains.Vm, host: Host) -> int:
    """The last round that the UEFI guest tells of."""
    found = re.findall(r"round (\d+) done", vm.serial_text(host))
    return int(found[-1]) if found else 0
