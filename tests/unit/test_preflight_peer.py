# SPDX-License-Identifier: Apache-2.0
"""What the backup says of a VM: what is refused, what is advice, and what its hints tell one to do."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import msgspec
import pytest

from remusdb.core.messages import Capabilities, pack, unpack
from remusdb.core.probe import (
    Answer,
    Arbitration,
    Bridge,
    Confinement,
    Forwarding,
    HugePages,
    Namesake,
    Refusal,
    Uplink,
)
from remusdb.net import offloads
from remusdb.preflight import needs
from remusdb.preflight.checks import Check
from remusdb.preflight.here import Here
from remusdb.preflight.peer import decide

NIC = """<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><target dev='vnet3'/>
<model type='virtio'/></interface>"""
XML = f"""<domain type='kvm' id='3'><name>db1</name><uuid>u-1</uuid><memory unit='MiB'>1024</memory>
<vcpu placement='static'>2</vcpu><os><type arch='x86_64' machine='pc-q35-8.2'>hvm</type></os>
<cpu mode='custom'><model>Nehalem</model></cpu><devices><emulator>/usr/bin/qemu</emulator>{NIC}<memballoon/></devices>
</domain>"""
OUT = [Uplink("eth0", 1500)]
BRIDGE = Bridge("br0", there=True, up=True, mtu=1500, uplinks=OUT)
HERE = Here(
    "alpha", 100, "7", {"br0": BRIDGE}, {"vnet3": 1500}, {"vnet3": {}}, tun_offloads=0x7F, vhost=-1, cpu="",
    disks={"vda": 10 << 20},
)  # fmt: skip
GOOD = Answer(
    agent="beta", sees="alpha", silence_ms=500, arbiter=Arbitration("7"), domain_types=["qemu", "kvm"], cpus="0-3",
    nodes="0", huge_pages={2048: HugePages(0, mounted=False)}, huge_page_kib=2048, tun_offloads=0x1FF, vhost=-1,
    forwarding=Forwarding(called=True), confinement=Confinement(confined=False), image_free=1 << 30, memory_problem="",
    paths={}, bridges={"br0": BRIDGE}, taken_links=[], listens={}, namesakes=[], cpu="",
    host_cpu="identical",
)  # fmt: skip


def look(xml: str = XML, here: Here = HERE, **answer: Any) -> dict[str, Check]:
    """The checks by name: a good VM and backup, but for what is given."""
    checks = decide("beta", msgspec.structs.replace(GOOD, **answer), here, ET.fromstring(xml))
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def failed(checks: dict[str, Check], level: str = "required") -> list[str]:
    return [name for name, check in checks.items() if not check.ok and check.level == level]


def with_device(device: str) -> str:
    return XML.replace("<memballoon/>", device)


def before_os(element: str) -> str:
    return XML.replace("<os>", f"{element}<os>")


def test_a_good_backup_passes() -> None:
    checks = look()
    assert failed(checks) == [] and failed(checks, "advice") == []
    assert all(check.hint == "" for check in checks.values() if check.ok)


def test_an_older_agent_says_nothing_and_refuses_nothing() -> None:
    (told,) = decide("beta", None, HERE, ET.fromstring(XML))
    assert told.level == "advice" and not told.ok and "older" in told.detail
    old = msgspec.msgpack.encode(
        {"version": "1", "qemu_version": (9, 0, 0), "libvirt_version": (9, 0, 0), "machines": []}
    )
    assert unpack(Capabilities, old).answer is None
    new = Capabilities("1", (9, 0, 0), (9, 0, 0), [], GOOD)
    assert unpack(Capabilities, pack(new)) == new


def test_one_question_that_fails_spoils_no_other() -> None:
    fields = [name for name in Answer.__struct_fields__ if getattr(Answer(), name) is None]
    silent: dict[str, Any] = dict.fromkeys(fields)
    checks = look(**silent, errors={"cpus": "no such file", "forwarding": "nft is not installed"})
    assert failed(checks) == []
    assert failed(checks, "advice") == ["peer answer"]
    assert "cpus of beta could not be asked: no such file" in checks["peer answer"].detail
    for name in fields:
        assert failed(look(**dict[str, Any]({name: None}))) == []


GONE = {"br0": Bridge("br-lan")}
BOUND = "<graphics type='vnc' port='5900' autoport='yes' listen='192.0.2.1'/>"
FIXED = "<graphics type='vnc' port='5999' autoport='no' listen='0.0.0.0'/>"
FWCFG = before_os("<sysinfo type='fwcfg'><entry name='opt/example/ign' file='/srv/ign.json'/></sysinfo>")
HUGE = before_os("<memoryBacking><hugepages><page size='2' unit='M'/></hugepages></memoryBacking>")
USED = "<interface type='bridge'><source bridge='br0'/><target dev='db-tap'/></interface>"


def filtering(pvid: int, **vlans: bool) -> dict[str, Bridge]:
    """A bridge of the backup that looks at VLANs; v10=True: VLAN 10 leaves untagged."""
    found = {int(name[1:]): untagged for name, untagged in vlans.items()}
    return {"br0": Bridge("br0", True, True, 1500, True, pvid, [Uplink("eth0", 1500, 0, found)])}


def same(name: str = "db1", uuid: str = "u-1", **inventory: Any) -> list[Namesake]:
    return [Namesake(name, uuid, **{"active": False, "persistent": True, "autostart": False, **inventory})]


@pytest.mark.parametrize(
    ("xml", "answer", "name", "why", "hint"),
    [
        (XML, {"bridges": GONE}, "peer bridges", "bridge br-lan is not on beta", '[network.bridges] br0 = "'),
        (XML, {"bridges": {"br0": Bridge("br0", True, False, 1500)}}, "peer bridges", "is down", "ip link set br0 up"),
        (with_device(BOUND), {"listens": {"192.0.2.1:0": "Cannot assign requested address"}}, "peer displays",
         "192.0.2.1:0 on beta: Cannot assign", "sysctl -w net.ipv4.ip_nonlocal_bind=1"),
        (with_device(FIXED), {"listens": {"0.0.0.0:5999": "Address already in use"}}, "peer displays", "in use",
         "autoport='yes'"),
        (XML, {"refusals": [Refusal("a brand-new thing", "remove it")]}, "peer accepts", "beta: a brand-new thing",
         "remove it"),
        (FWCFG, {"paths": {"/srv/ign.json": "is not there"}}, "peer files",
         "fwcfg file /srv/ign.json is not there on beta", "rsync -aR /srv/ign.json beta:/"),
        (XML.replace("<vcpu ", "<vcpu cpuset='2-5' "), {}, "peer CPUs", "vcpu names CPU 4, 5, beta has 0-3",
         "virsh edit db1: <vcpu cpuset='0-3'>"),
        (before_os("<cputune><vcpupin vcpu='1' cpuset='7'/></cputune>"), {}, "peer CPUs", "vcpupin 1 names CPU 7",
         "virsh vcpupin db1 1 0-3 --live --config"),
        (before_os("<cputune><emulatorpin cpuset='7'/></cputune>"), {}, "peer CPUs", "emulatorpin names CPU 7",
         "virsh emulatorpin db1 0-3 --live --config"),
        (before_os("<numatune><memory nodeset='0-1'/></numatune>"), {}, "peer NUMA nodes", "node 1, beta has 0",
         "virsh numatune db1 --nodeset 0 --config"),
        (before_os("<numatune><memnode cellid='0' mode='strict' nodeset='1'/></numatune>"), {}, "peer NUMA nodes",
         "node 1", "virsh edit db1"),
        (XML, {"namesakes": same(autostart=True)}, "peer domains", "with autostart", "on beta: virsh undefine db1"),
        (XML, {"namesakes": same(active=True)}, "peer domains", "runs a domain named db1",
         "virsh destroy db1 && virsh undefine db1"),
        (XML, {"namesakes": same(uuid="u-2")}, "peer domains", "another domain named db1", "virsh undefine db1"),
        (XML, {"namesakes": same(name="db2")}, "peer domains", "db2 with the same UUID", "virsh undefine db2"),
        (XML, {"namesakes": same(active=True, persistent=False)}, "peer domains", "runs", "virsh destroy db1"),
        (XML, {"namesakes": same(autostart=True, active=True, ours=True)}, "peer domains", "autostart", "undefine"),
        (XML, {"domain_types": ["qemu"]}, "peer domain type", "cannot run VMs of type kvm", "modprobe kvm_intel"),
        (XML, {"cpu": "Host CPU does not provide required features: avx2"}, "peer CPU", "avx2",
         "hypervisor-cpu-baseline"),
        (XML.replace("<cpu mode='custom'>", "<cpu mode='host-passthrough'>"), {"host_cpu": "does not provide: avx2"},
         "peer CPU", "avx2", "virsh edit"),
        (XML, {"memory_problem": "the standby needs 9 MiB"}, "peer memory", "needs 9 MiB", "limits.memory_max_mib"),
        (HUGE, {"huge_pages": {2048: HugePages(12, True)}}, "peer huge pages",
         "12 huge pages of 2048 KiB are free on beta, the VM needs 512", "+ 500))"),
        (HUGE, {"huge_pages": {2048: HugePages(512, False)}}, "peer huge pages", "no hugetlbfs", "pagesize=2048K"),
        (HUGE, {"huge_pages": {}}, "peer huge pages", "0 huge pages", "nr_hugepages"),
        (before_os("<memoryBacking><hugepages/></memoryBacking>"), {}, "peer huge pages", "needs 512", "nr_hugepages"),
        (XML, {"image_free": 5 << 20}, "peer disk space", "10 MiB more, 5 MiB are free", "image_dir"),
        (XML, {"tun_offloads": 0x1F}, "peer offloads", "no USO, USO over IPv6", "Linux 6.2"),
        (XML.replace("<model type='virtio'/>", "<model type='virtio'/><driver name='vhost'/>"), {}, "peer vhost-net",
         "by name", "modprobe vhost_net"),
        (XML, {"forwarding": Forwarding(True, ["inet f fw"])}, "peer packet filter", "inet f fw on beta drops",
         "sysctl -w net.bridge.bridge-nf-call-iptables=0"),
        (XML, {"forwarding": Forwarding(False, ["bridge f fw"])}, "peer packet filter", "bridge f fw",
         "nft add rule bridge f fw accept"),
        (with_device(USED), {"taken_links": ["db-tap"]}, "peer taps", "a link named db-tap", "virsh edit"),
        (XML, {"sees": "gamma"}, "peer session", "certificate of gamma", "the certificate of alpha into"),
        (XML, {"agent": "gamma"}, "peer session", "calls itself gamma", "[peers.gamma]"),
        (XML, {"busy_with": "gamma"}, "peer session", "for host gamma", "virsh domrename"),
        (XML, {"silence_ms": 200}, "peer session", "each 100 ms", "heartbeat_ms = 66"),
        (XML, {"arbiter": Arbitration("8")}, "peer arbiter", "cluster 7, beta uses cluster 8", "the same [arbiter]"),
        (XML, {"arbiter": Arbitration()}, "peer arbiter", "beta uses none", "the same [arbiter]"),
        (XML, {"arbiter": Arbitration("", "no space", "make room")}, "peer arbiter", "beta: no space", "make room"),
        (XML.replace("<model ", "<vlan><tag id='10'/></vlan><model "), {}, "peer VLAN", "does not look at VLANs",
         "[network.bridges]"),
        (XML, {"bridges": filtering(0, v1=True)}, "peer VLAN", "a new port of br0 is in no VLAN", "vlan_default_pvid"),
        (XML, {"bridges": filtering(1, v10=False)}, "peer VLAN", "VLAN 1, which leaves by none", "vlan_default_pvid"),
    ],
)  # fmt: skip
def test_a_backup_that_is_refused(xml: str, answer: dict[str, Any], name: str, why: str, hint: str) -> None:
    assert xml != XML or answer
    checks = look(xml, **answer)
    assert failed(checks) == [name]
    assert why in checks[name].detail and hint in checks[name].hint


@pytest.mark.parametrize(
    ("xml", "answer", "name", "why"),
    [
        (XML, {"namesakes": same(leftovers=["--managed-save"])}, "peer definition", "a takeover replaces"),
        (XML, {"cpus": "0"}, "peer vCPUs", "2 vCPUs, beta has 1"),
        (XML, {"bridges": {"br0": Bridge("br0", True, True, 1500)}}, "peer uplinks", "no port that leads out"),
        (XML, {"forwarding": Forwarding(True, [], ["ip filter FORWARD"])}, "peer filter rules", "ip filter FORWARD"),
        (XML, {"confinement": Confinement(True, channel=True)}, "peer AppArmor", "does not let QEMU reach"),
        (FWCFG, {"paths": {}}, "peer files unasked", "/srv/ign.json"),
        (with_device("<graphics type='vnc' listen='db.example'/>"),
         {"listens": {"db.example:0": "is a name, and is not looked up"}}, "peer display names", "db.example"),
        (XML, {"bridges": {"br0": Bridge("br0", True, True, 1500, uplinks=[Uplink("eth0.7", 1500, 7)])}}, "peer tags",
         "leave as VLAN 7 there, and untagged here"),
    ],
)  # fmt: skip
def test_what_is_only_advice(xml: str, answer: dict[str, Any], name: str, why: str) -> None:
    checks = look(xml, **answer)
    assert failed(checks) == [] and failed(checks, "advice") == [name]
    assert why in checks[name].detail and checks[name].hint


def test_a_definition_is_undefined_with_all_that_belongs_to_it() -> None:
    (one,) = same(name="db 1", autostart=True, leftovers=["--managed-save", "--keep-nvram"])
    xml = XML.replace("<name>db1", "<name>db 1")
    assert look(xml, namesakes=[one])["peer domains"].hint == (
        "on beta: virsh undefine 'db 1' --managed-save --keep-nvram"
    )


def test_our_own_standby_is_no_problem() -> None:
    checks = look(
        HUGE, standby=True, namesakes=same(active=True, persistent=False, ours=True), image_free=0,
        memory_problem=None, taken_links=["db-tap"],
    )  # fmt: skip
    assert failed(checks) == [] and failed(checks, "advice") == []
    display: dict[str, Any] = {"listens": {"0.0.0.0:5999": "Address already in use"}}
    assert failed(look(with_device(FIXED), standby=True, **display)) == []


def test_images_that_are_there_already_need_no_room() -> None:
    assert failed(look(image_free=0, images={"vda": 10 << 20})) == []
    assert failed(look(image_free=0, images={"vda": 9 << 20})) == ["peer disk space"]


@pytest.mark.parametrize(
    ("here", "there", "uplink", "fine"),
    [(9000, 1500, 1500, False), (9000, 9000, 1500, False), (9000, 9000, 9000, True), (1500, 9000, 9000, True)],
)
def test_the_mtu_of_the_backup(here: int, there: int, uplink: int, fine: bool) -> None:
    mine = Bridge("br0", True, True, here, uplinks=[Uplink("eth0", here)])
    theirs = Bridge("br0", True, True, there, uplinks=[Uplink("eth0", uplink)])
    checks = look(here=_at(mine, here), bridges={"br0": theirs})
    assert failed(checks) == ([] if fine else ["peer MTU"])
    if not fine:
        assert "ip link set eth0 mtu 9000; on beta: ip link set br0 mtu 9000" in checks["peer MTU"].hint


def _at(bridge: Bridge, mtu: int, **vlans: bool) -> Here:
    ports = {int(name[1:]): untagged for name, untagged in vlans.items()}
    return Here("alpha", 100, "7", {"br0": bridge}, {"vnet3": mtu}, {"vnet3": ports}, 0x7F, -1, "", {})


@pytest.mark.parametrize(
    ("port", "there", "level"),
    [
        ({"v10": True}, filtering(10, v10=False), ""),
        ({"v10": True}, filtering(1, v1=True, v10=False), "peer VLAN"),
        ({"v10": True}, filtering(20, v20=False), "peer VLAN"),
        ({"v10": True, "v30": False}, filtering(10, v10=False, v30=False), "peer VLAN"),
        ({"v10": True}, {"br0": Bridge("br0", True, True, 1500, uplinks=[Uplink("eth0.10", 1500, 10)])}, "peer tags"),
        ({"v10": True}, {"br0": BRIDGE}, "peer tags"),
    ],
)
def test_the_vlan_of_the_tap(port: dict[str, bool], there: dict[str, Bridge], level: str) -> None:
    mine = Bridge("br0", True, True, 1500, True, 1, [Uplink("eth0", 1500, 0, {1: True, 10: False, 30: False})])
    checks = look(here=_at(mine, 1500, **port), bridges=there)
    assert [*failed(checks), *failed(checks, "advice")] == ([level] if level else [])
    if level == "peer VLAN":  # a hook of the operator's may put the port into its VLAN when the VM starts
        doubt = look(here=_at(mine, 1500, **port), bridges=there, libvirt_hooks=True)
        assert failed(doubt) == [] and failed(doubt, "advice") == ["peer tags"]


def test_a_cpu_that_neither_host_has_in_full_runs_on_both() -> None:
    lacks = "Host CPU does not provide required features: sse4.1, popcnt"
    at = Here("alpha", 100, "7", {"br0": BRIDGE}, cpu=lacks)
    assert failed(look(here=at, cpu=lacks), "advice") == ["peer CPU"]
    assert failed(look(here=at, cpu=f"{lacks}, avx2")) == ["peer CPU"]
    assert failed(look(here=at, cpu="no such model")) == ["peer CPU"]
    odd = Here("alpha", 100, "7", {"br0": BRIDGE}, cpu="no such model")
    assert failed(look(here=odd, cpu="no such model"), "advice") == ["peer CPU"]


def test_offloads_that_the_machine_type_does_not_offer() -> None:
    without: dict[str, Any] = {"tun_offloads": 0x1F}
    assert failed(look(XML.replace("8.2", "8.1"), **without)) == []
    assert failed(look(XML.replace("pc-q35-8.2", "pc-q35-noble"), **without)) == ["peer offloads"]
    assert failed(look(XML.replace("type='virtio'", "type='e1000e'"), **without)) == []


def test_vhost_net_on_one_host_only() -> None:
    vhost = sum(1 << bit for bit in (15, 28, 29, 32, 40))
    at = Here("alpha", 100, "7", {"br0": BRIDGE}, vhost=vhost)
    assert failed(look(here=at), "advice") == ["peer vhost-net"]
    assert failed(look(here=at, vhost=vhost & ~(1 << 40))) == ["peer vhost-net"]
    assert failed(look(here=at, vhost=vhost)) == [] == failed(look(vhost=vhost))
    assert offloads.VHOST_DEFAULT == vhost


def test_without_an_arbiter_on_both_nothing_is_said() -> None:
    at = Here("alpha", 100, "", {"br0": BRIDGE})
    assert "peer arbiter" not in look(here=at, arbiter=Arbitration())
    assert failed(look(here=at)) == ["peer arbiter"]


def test_many_paths_are_bounded() -> None:
    many = "".join(f"<entry name='opt/x{n}' file='/srv/{n}'/>" for n in range(100))
    tree = ET.fromstring(before_os(f"<sysinfo type='fwcfg'>{many}</sysinfo>"))
    assert len(needs.paths(tree)) == 100 and needs.MAX_PATHS == 64
