# SPDX-License-Identifier: Apache-2.0
"""Devices that change while a VM is protected: the session ends before anything goes wrong, says why, and one with the
new devices follows by itself; a takeover after that is warm and has all of them."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import time
from typing import Any

import pytest

from tests.vm.pair import Pair, eventually
from tests.vm.test_replica import same_bytes
from tools.lab import domains
from tools.lab.guest import Mode
from tools.matrix.watch import Speakers

MAC = "52:54:00:77:00:21"
PORTS = 6
# Every 10 ms, on every NIC that there is at that moment: no guest speaks on a new one sooner.
ANNOUNCE = {"execute": "announce-self", "arguments": {"initial": 10, "max": 10, "rounds": 1000, "step": 0}}
ENDED_S = 3.0  # a loaded machine; an epoch and libvirt's word are some 0.2 s
AGAIN_S = 40.0


NUMBERS = itertools.count(1)


@pytest.fixture
def vm(pair: Pair) -> domains.Vm:
    """A protected bare-metal guest with room for devices of every kind, and one disk on a SCSI controller."""
    vm = domains.define_bare(pair.a, Mode.DIRTIER, name=f"plug{next(NUMBERS)}")
    xml = pair.a.run(["virsh", "dumpxml", "--inactive", vm.name]).stdout
    room = "<controller type='pci' model='pcie-root-port'/>" * PORTS
    room += "<controller type='scsi' model='virtio-scsi'/><controller type='virtio-serial'/>"
    room += "<disk type='file' device='cdrom'><target dev='sdz' bus='sata'/><readonly/></disk>"
    xml = xml.replace("<interface", room + "<interface", 1)
    xml = re.sub("<vcpu[^>]*>1<", "<vcpu current='1'>2<", xml)
    xml = xml.replace("<memory unit", "<maxMemory slots='2' unit='MiB'>1024</maxMemory><memory unit", 1)
    pair.a.run(["virsh", "define", "/dev/stdin"], stdin=xml)
    pair.a.run(["virsh", "start", vm.name])
    eventually(lambda: len(vm.serial_text(pair.a)) > 20, 20, "the guest prints nothing")
    pair.protect(vm.name)
    return vm


def virsh(pair: Pair, *words: str, stdin: str | None = None) -> None:
    pair.a.run(["virsh", *words], stdin=stdin)


def attach(pair: Pair, vm: domains.Vm, xml: str) -> None:
    virsh(pair, "attach-device", vm.name, "/dev/stdin", "--live", stdin=xml)


def image(pair: Pair, name: str) -> str:
    """A disk of 8 MiB on the primary."""
    path = f"/var/lib/libvirt/images/{name}"
    pair.a.run(["qemu-img", "create", "-q", "-f", "raw", path, "8M"])
    return path


def changed(pair: Pair, vm: domains.Vm, since: int, within_s: float = ENDED_S) -> dict[str, Any]:
    """The event of the change after `since`, which must come soon, and only once."""

    def found() -> list[dict[str, Any]]:
        return [one for one in pair.events(vm.name) if one["event"] == "changed" and one["at_ns"] > since]

    eventually(found, within_s, f"nothing changed: {pair.product.status(vm.name)}")
    (event,) = found()
    return event


def again(pair: Pair, vm: domains.Vm, since: int) -> None:
    """Until a session that began after `since` protects the VM."""

    def found() -> bool:
        newest = [one for one in pair.events(vm.name) if one["at_ns"] > since]
        return pair.state(vm.name) == "protected" and any(one["event"] == "protected" for one in newest)

    eventually(found, AGAIN_S, f"not protected again: {pair.product.status(vm.name)}")


def given_up(pair: Pair, vm: domains.Vm) -> bool:
    """Whether the backup has it on its disk that it has no replica: from then on the VM may speak."""
    return pair.product.durable("b", vm.name).role == "none"


def take_over(pair: Pair, vm: domains.Vm) -> None:
    """The primary's QEMU dies; the backup resumes the VM where it was, and where it ran it runs."""
    eventually(lambda: not pair.product.status(vm.name)["troubles"], 20, "that it runs again is not seen")
    after = pair.product.standby(vm.name)["committed"] + 2
    eventually(lambda: pair.product.standby(vm.name)["committed"] >= after, 20, "no epoch says that it runs")
    os.kill(pair.a.qemu_pid(vm.name), signal.SIGKILL)
    assert pair.await_event(vm.name, "promoted", "b")["why"]["code"] == "resumed-warm"
    assert pair.runs(vm, pair.b)


def ingress(pair: Pair) -> list[str]:
    """The rules on what each of the VM's taps sends."""
    links = json.loads(pair.a.run(["ip", "-j", "link"]).stdout)
    taps = [link["ifname"] for link in links if link["ifname"].startswith("vnet")]
    return [pair.a.run(["tc", "filter", "show", "dev", tap, "ingress"], check=False).stdout for tap in taps]


def plug_out(pair: Pair, vm: domains.Vm, mac: str) -> None:
    """`virsh detach-interface`, and the guest's part in it, for which this one has no driver: ACPI's eject register."""
    xml = pair.a.run(["virsh", "dumpxml", vm.name]).stdout
    found = re.search(mac + r".*?<address type='pci' [^>]*bus='0x(..)'", xml, re.DOTALL)
    assert found is not None, xml
    bus = int(found[1], 16)
    asked = pair.a.popen(["virsh", "detach-interface", vm.name, "bridge", "--mac", mac, "--live"])
    get = {"path": f"/machine/peripheral/pci.{bus}/pci.{bus}", "property": "acpi-pcihp-bsel"}
    order = json.dumps({"execute": "qom-get", "arguments": get})
    selector = json.loads(pair.a.run(["virsh", "qemu-monitor-command", vm.name, order]).stdout)["return"]
    for write in (f"o /w 0xcd0 {selector}", "o /w 0xcc8 1"):  # hw/acpi/pcihp.c: which bus, then the bit of its slot
        virsh(pair, "qemu-monitor-command", vm.name, "--hmp", write)
    assert asked.wait(20) == 0


def test_a_new_interface_is_mute_until_the_backup_has_given_up(pair: Pair, vm: domains.Vm) -> None:
    """It speaks as soon as it is there; nothing of it gets out while the old replica may still be promoted.

    Then it is in the next session, also when another device comes while that one copies, and leaves again.
    """
    heard = Speakers(pair.lab, MAC)
    try:
        virsh(pair, "qemu-monitor-command", vm.name, json.dumps(ANNOUNCE))
        since = time.time_ns()
        virsh(pair, "attach-interface", vm.name, "bridge", "br0", "--model", "virtio", "--mac", MAC, "--live")
        eventually(lambda: given_up(pair, vm), ENDED_S, "the backup keeps its replica")
        renounced = pair.product.durable("b", vm.name).changed_at_ns
        assert f"interface {MAC} was attached" in changed(pair, vm, since)["reason"]
        eventually(heard.frames, 10, "it never speaks")  # so the ear hears, and the next line says something
        assert heard.frames()[0].at_ns > renounced > since
    finally:
        heard.close()
    # Once the agent has been told what to build, and has yet to begin its standby.
    eventually(lambda: pair.product.durable("b", vm.name).role == "standby", 20, "no session follows")
    since = time.time_ns()
    attach(pair, vm, "<channel type='pty'><target type='virtio' name='org.example.0'/></channel>")
    assert "channel org.example.0 was attached" in changed(pair, vm, since, within_s=20)["reason"]
    again(pair, vm, since)
    assert all("mirred" in rules for rules in ingress(pair)) and len(ingress(pair)) == 2

    since = time.time_ns()
    plug_out(pair, vm, MAC)
    assert f"interface {MAC} was detached" in changed(pair, vm, since)["reason"]
    again(pair, vm, since)
    pair.settle(vm.name)
    assert pair.differing_blocks(vm.name) == []
    virsh(pair, "qemu-monitor-command", vm.name, "--hmp", "cont")
    take_over(pair, vm)
    assert MAC not in pair.b.run(["virsh", "dumpxml", vm.name]).stdout


def test_new_disk_vcpu_and_memory_are_taken_in(pair: Pair, vm: domains.Vm) -> None:
    """One after the other: each ends the session with its name, and is in the next one."""
    since = time.time_ns()
    virsh(pair, "attach-disk", vm.name, image(pair, "plug-b.raw"), "vdb", "--live", "--subdriver", "raw")
    assert "disk vdb was attached" in changed(pair, vm, since)["reason"]
    again(pair, vm, since)
    write = 'qemu-io -d /machine/peripheral/virtio-disk1/virtio-backend "write -P 7 1M 512k"'
    virsh(pair, "qemu-monitor-command", vm.name, "--hmp", write)
    refused = pair.a.run(["virsh", "detach-disk", vm.name, "vdb", "--live"], check=False)
    assert refused.returncode and pair.state(vm.name) == "protected", refused.stdout  # libvirt: it is being mirrored

    since = time.time_ns()
    virsh(pair, "setvcpus", vm.name, "2", "--live")
    assert "there are 2 vCPUs, 1 before" in changed(pair, vm, since)["reason"]
    again(pair, vm, since)

    since = time.time_ns()
    attach(pair, vm, "<memory model='dimm'><target><size unit='MiB'>128</size><node>0</node></target></memory>")
    assert "memory dimm0 was attached" in changed(pair, vm, since)["reason"]
    again(pair, vm, since)

    pair.settle(vm.name)
    assert pair.differing_blocks(vm.name) == []
    images = pair.b.path(f"/var/lib/remusdb/images/{vm.name}")
    assert same_bytes(pair.a.path("/var/lib/libvirt/images/plug-b.raw"), images / "vdb.raw")
    virsh(pair, "qemu-monitor-command", vm.name, "--hmp", "cont")
    take_over(pair, vm)


def test_what_cannot_be_taken_in_says_so(pair: Pair, vm: domains.Vm) -> None:
    """A medium in the drive: unprotected with the reason and what to do; once done, protected again by itself."""
    since = time.time_ns()
    virsh(pair, "change-media", vm.name, "sdz", image(pair, "medium.iso"), "--insert", "--live")
    assert "a medium was put into drive sdz" in changed(pair, vm, since)["reason"]
    eventually(lambda: "--eject" in pair.product.status(vm.name)["hint"], 10, "no hint")
    status = pair.product.status(vm.name)
    assert status["state"] == "solo" and "a medium was put into drive sdz" in status["reason"], status
    told = [one["event"] for one in pair.events(vm.name) if one["at_ns"] > since]
    assert told == ["changed", "solo", "failed"], told
    assert not any(ingress(pair))  # it speaks as if it had never been protected
    virsh(pair, "change-media", vm.name, "sdz", "--eject", "--live")
    again(pair, vm, since)
