# SPDX-License-Identifier: Apache-2.0
"""What the backup answers about its files, addresses and memory: bounded, and nothing but what it was asked for."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from remusdb import safexml
from remusdb.core.messages import pack
from remusdb.core.probe import XML_MAX_BYTES, HugePages, Probe
from remusdb.errors import BadFrame, CannotProtect, GateError, VmError
from remusdb.net import bridges, forwarding
from remusdb.net.netlink import NESTED, attribute, text
from remusdb.preflight import apparmor, cpus, needs, resources
from remusdb.preflight.looks import look_at
from remusdb_agents.backup import lookups
from remusdb_agents.backup.admission import MIB, QEMU_OVERHEAD_BYTES, Admission
from remusdb_agents.backup.capabilities import question
from remusdb_agents.backup.standby.judge import Here

AF_BRIDGE = 7  # linux/socket.h


def domain(inside: str) -> str:
    return f"<domain type='kvm'><name>db</name>{inside}</domain>"


def test_paths_are_there_or_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("secret")
    os.mkfifo(tmp_path / "fifo")  # to open it would wait for ever

    def wrong(inside: str) -> str:
        (why,) = lookups.paths(safexml.parse(domain(inside)), Here(folders=(str(tmp_path.parent),))).values()
        return why

    assert wrong(f"<os><kernel>{tmp_path}/file</kernel></os>") == ""
    assert wrong(f"<os><kernel>{tmp_path}/none</kernel></os>") == "is not there"
    assert wrong(f"<os><kernel>{tmp_path}</kernel></os>") == "is a folder"
    assert wrong(f"<os><kernel>{tmp_path}/fifo</kernel></os>") == ""
    elsewhere = safexml.parse(domain(f"<os><kernel>{tmp_path}/file</kernel><initrd>/etc/shadow</initrd></os>"))
    assert lookups.paths(elsewhere, Here(folders=("/usr/share",))) == {}


def test_no_more_paths_than_the_limit_and_none_of_other_places() -> None:
    srv = Here(folders=("/srv",))
    entries = "".join(f"<entry name='opt/{n}' file='/srv/{n}'/>" for n in range(1000))
    assert (
        len(lookups.paths(safexml.parse(domain(f"<sysinfo type='fwcfg'>{entries}</sysinfo>")), srv)) == needs.MAX_PATHS
    )
    elsewhere = "<metadata><kernel>/etc/shadow</kernel></metadata><description>/etc/shadow</description>"
    assert lookups.paths(safexml.parse(domain(elsewhere)), srv) == {}


def test_a_question_is_bounded() -> None:
    asked = question(pack(Probe(domain(""), "<cpu/>")))
    assert asked is not None and asked.probe.host_cpu == "<cpu/>" and asked.vm == "db"
    assert question(b"") is None
    with pytest.raises(BadFrame, match="bytes of XML"):
        question(pack(Probe(domain(" " * XML_MAX_BYTES))))
    with pytest.raises(BadFrame, match="a PROBE of"):
        question(b" " * (2 * XML_MAX_BYTES + 1))
    with pytest.raises(VmError, match="document type"):
        question(pack(Probe("<!DOCTYPE domain><domain/>")))
    with pytest.raises(BadFrame):
        question(b"garbage")


def test_addresses_are_bound_and_let_go() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        display = f"<graphics type='vnc' port='{port}' autoport='no' listen='127.0.0.1'/>"
        others = "<graphics listen='192.0.2.77'/><graphics listen='localhost'/><graphics listen='a.example'/>"
        found = lookups.listens(safexml.parse(domain(f"<devices>{display}{others}</devices>")))
    assert found == {
        f"127.0.0.1:{port}": "Address already in use",
        "192.0.2.77:0": "Cannot assign requested address",
        "localhost:0": "",
        "a.example:0": "is a name, and is not looked up",
    }


def test_images_of_an_earlier_session(tmp_path: Path) -> None:
    disks = "<devices><disk><target dev='vda'/></disk><disk><target dev='../vdb'/></disk></devices>"
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "vda.raw").write_bytes(b"x" * 8192)
    (tmp_path / "vdb.raw").write_bytes(b"x" * 8192)
    assert lookups.images(tmp_path, safexml.parse(domain(disks))) == {"vda": 8192}
    assert lookups.images(tmp_path / "db", safexml.parse(domain(disks).replace("<name>db", "<name>.."))) == {}
    (tmp_path / "%2Edb%26").mkdir()  # the folder of a VM whose name is not plain: where its session would look for it
    (tmp_path / "%2Edb%26" / "vda.raw").write_bytes(b"x" * 8192)
    odd = domain(disks).replace("<name>db", "<name>.db&amp;")
    assert lookups.images(tmp_path, safexml.parse(odd)) == {"vda": 8192}
    assert lookups.room(tmp_path / "not" / "yet") > 0


def test_memory_is_asked_for_and_not_set_aside() -> None:
    admission = Admission(available=lambda: QEMU_OVERHEAD_BYTES + 100 * MIB)
    admission.check("db", 100 * MIB)
    admission.check("other", 100 * MIB)
    with pytest.raises(CannotProtect, match="MiB are free"):
        admission.check("db", 101 * MIB)


def test_apparmors_rules(tmp_path: Path) -> None:
    confined = "<secmodel><model>apparmor</model></secmodel>"
    local = tmp_path / "local"
    assert not apparmor.look("<model>none</model>", tmp_path, local).confined
    found = apparmor.look(confined, tmp_path, local)
    assert (found.confined, found.channel, found.monitor) == (True, False, False)
    (tmp_path / "remusdb").write_text(f"# {apparmor.CHANNEL_RULE}\n  {apparmor.MONITOR_RULE}\n")
    found = apparmor.look(confined, tmp_path, local)
    assert (found.channel, found.monitor) == (False, True)  # a comment is no rule, and one rule is not the other
    local.write_text(f"{apparmor.CHANNEL_RULE}\n")
    assert apparmor.look(confined, tmp_path, local).channel
    assert apparmor.CHANNEL_RULE in apparmor.hint(apparmor.CHANNEL_RULE)


def test_huge_pages_of_this_host(tmp_path: Path) -> None:
    for size, free in ((2048, 12), (1048576, 0)):
        folder = tmp_path / f"hugepages-{size}kB"
        folder.mkdir()
        (folder / "free_hugepages").write_text(f"{free}\n")
    mounts = tmp_path / "mounts"
    mounts.write_text("none /a hugetlbfs rw,relatime,pagesize=1024M 0 0\ntmpfs /b tmpfs rw 0 0\n")
    assert resources.huge_pages(tmp_path, mounts) == {2048: HugePages(12, False), 1048576: HugePages(0, True)}
    assert needs.parse_set(resources.online_cpus()) and resources.memory_nodes()


def test_vlans_of_a_port_as_the_kernel_writes_them() -> None:
    """A dump of AF_BRIDGE: VLAN 1 is the port's own (PVID, untagged), 30 is tagged."""
    vlans = attribute(2, struct.pack("=HH", 0x06, 1)) + attribute(2, struct.pack("=HH", 0x00, 30))
    body = struct.pack("=BxHiII", AF_BRIDGE, 1, 5, 0, 0)
    body += text(3, "vnet0") + attribute(26 | NESTED, vlans)
    message = ifinfmsg(struct.pack("=IHHII", 16 + len(body), 16, 2, 1, 0) + body)
    message.decode()
    assert bridges._vlans([message]) == {5: {1: 0x06, 30: 0x00}}


def test_chains_that_drop() -> None:
    def chain(family: str, hook: str, policy: str) -> dict[str, object]:
        return {"chain": {"family": family, "table": "t", "name": "c", "hook": hook, "policy": policy}}

    bad = [chain("inet", "forward", "drop"), chain("bridge", "forward", "drop")]
    good = [chain("ip", "forward", "accept"), chain("ip", "input", "drop"), {"metainfo": {}}]
    good += [{"chain": {"family": "ip", "table": "t", "name": "no-base"}}]
    text = json.dumps({"nftables": [*good, *bad]})
    assert forwarding.dropping(text, ("inet", "ip", "bridge")) == [("inet", "t", "c"), ("bridge", "t", "c")]
    assert forwarding.dropping(text, ("bridge",)) == [("bridge", "t", "c")]


@pytest.mark.parametrize("text", ["", "x", "[]", '{"nftables": 7}', '{"nftables": [{"chain": {}}]}', "[" * 100_000])
def test_what_is_no_list_of_chains_is_a_gate_error(text: str) -> None:
    with pytest.raises(GateError):
        forwarding.dropping(text, ("bridge",))


def test_the_features_that_a_cpu_lacks() -> None:
    reason = "the CPU is incompatible with host CPU: Host CPU does not provide required features: sse4.1, avx512-fp16"
    assert cpus.missing(reason) == {"sse4.1", "avx512-fp16"}
    assert cpus.missing("some other reason") == frozenset()


def test_a_question_that_hangs_or_fails_is_told_and_spoils_no_other() -> None:
    free = threading.Event()

    def fails() -> None:
        raise ValueError("why not")

    began = time.monotonic()
    found, errors = look_at({"hangs": free.wait, "fails": fails, "good": lambda: 7}, limit_s=0.2)
    free.set()
    assert found == {"good": 7} and errors == {"hangs": "no answer in time", "fails": "why not"}
    assert time.monotonic() - began < 5
