# SPDX-License-Identifier: Apache-2.0
"""The rehearsal's XML: the guest's view as it was, and no way out of it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from remusdb.errors import CannotProtect
from remusdb.net.island import neighbour_of
from remusdb.vm.prepare import QEMU_NS, prepare
from remusdb_agents.backup.rehearsal.xml import MARKER_NS, rehearsal_xml

LIVE = """
<domain type='kvm' id='7'>
  <name>db1</name><uuid>11111111-1111-1111-1111-111111111111</uuid>
  <memory unit='KiB'>524288</memory>
  <memoryBacking><hugepages/><locked/><source type='memfd'/></memoryBacking>
  <sysinfo type='smbios'><system><entry name='uuid'>11111111-1111-1111-1111-111111111111</entry>
    <entry name='serial'>s1</entry></system></sysinfo>
  <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os>
  <on_reboot>restart</on_reboot>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/><source file='/srv/db1.raw' index='1'/><backingStore/>
      <target dev='vda' bus='virtio'/><alias name='virtio-disk0'/><address type='pci' slot='0x05'/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:00:00:01'/><source bridge='br0' portid='x'/><target dev='vnet3'/><vlan><tag id='4'/></vlan>
      <model type='virtio'/><mtu size='9000'/><alias name='net0'/>
    </interface>
    <interface type='network'>
      <mac address='52:54:00:00:00:02'/><source network='default' bridge='virbr0'/><target dev='lan7'/>
      <model type='e1000e'/>
    </interface>
    <serial type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/><target port='0'/></serial>
    <serial type='tcp'><source mode='connect' host='10.0.0.9' service='4555'/><protocol type='raw'/>
      <target port='1'/></serial>
    <console type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/><target type='serial' port='0'/></console>
    <console type='unix'><source mode='bind' path='/tmp/c'/><target type='virtio' port='1'/></console>
    <channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/target/domain-7-db1/a'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
    <channel type='unix'><source mode='bind' path='/tmp/mine'/><target type='virtio' name='mine'/></channel>
    <graphics type='vnc' port='5903' autoport='no' listen='0.0.0.0'>
      <listen type='address' address='0.0.0.0'/></graphics>
    <audio id='1' type='pulseaudio' serverName='x'><input/></audio>
  </devices>
</domain>
"""
UUID = "22222222-2222-2222-2222-222222222222"
FOLDER = Path("/images/db1/rehearsal")


def made(live: str = LIVE) -> ET.Element:
    overlays = {"vda": FOLDER / "vda.qcow2"}
    return ET.fromstring(rehearsal_xml(live, overlays, uuid=UUID, tap_prefix="rdbrabc-", folder=FOLDER))


def words(root: ET.Element) -> list[str]:
    return [arg.get("value", "") for arg in root.iterfind(f"./{{{QEMU_NS}}}commandline/{{{QEMU_NS}}}arg")]


def test_it_is_another_domain_that_ends_for_good() -> None:
    root = made()
    assert (root.findtext("name"), root.findtext("uuid")) == ("db1-rehearsal", UUID)
    assert root.findtext(f"metadata/{{{MARKER_NS}}}of") == "db1"
    assert [root.findtext(f"on_{what}") for what in ("poweroff", "reboot", "crash")] == [
        "destroy", "destroy", "preserve"
    ]  # fmt: skip
    assert [entry.get("name") for entry in root.iterfind("./sysinfo/system/entry")] == ["serial"]
    assert words(root) == ["-incoming", "defer"]
    assert [child.tag for child in root.iterfind("memoryBacking/*")] == ["source"]


@pytest.mark.parametrize(
    ("backing", "left"),
    [
        ("<hugepages/><locked/><source type='memfd'/>", [("source", "memfd")]),
        ("<source type='file'/><access mode='shared'/>", [("source", "memfd"), ("access", None)]),
        ("<access mode='shared'/><nosharepages/>", [("access", None), ("nosharepages", None), ("source", "memfd")]),
        ("<source type='anonymous'/><allocation mode='immediate'/>", [("source", "anonymous")]),
    ],
)
def test_its_memory_is_neither_set_aside_nor_in_a_file(backing: str, left: list[tuple[str, str | None]]) -> None:
    root = made(LIVE.replace("<hugepages/><locked/><source type='memfd'/>", backing))
    assert [(child.tag, child.get("type")) for child in root.iterfind("memoryBacking/*")] == left


def test_memory_of_a_cell_that_is_shared_is_in_no_file_either() -> None:
    cell = "<cpu><numa><cell id='0' cpus='0' memory='1' memAccess='shared'/></numa></cpu>"
    live = re.sub("<memoryBacking>.*</memoryBacking>", cell, LIVE)
    assert made(live).find("./memoryBacking/source[@type='memfd']") is not None


def inside(element: ET.Element, path: str) -> ET.Element:
    found = element.find(path)
    assert found is not None, path
    return found


def test_disks_are_overlays_that_lock_nothing() -> None:
    root = made()
    disk = root.find("./devices/disk")
    assert disk is not None
    assert inside(disk, "driver").attrib == {"name": "qemu", "type": "qcow2", "cache": "none"}
    assert inside(disk, "source").attrib == {"file": str(FOLDER / "vda.qcow2")}
    device = root.find(f"./{{{QEMU_NS}}}override/{{{QEMU_NS}}}device")
    assert device is not None and device.get("alias") == "virtio-disk0"
    assert inside(device, f"./{{{QEMU_NS}}}frontend/{{{QEMU_NS}}}property").get("name") == "share-rw"


@pytest.mark.parametrize(
    "path",
    [
        "/run/libvirt/qemu/channel/7-db1/org.qemu.guest_agent.0",  # libvirt 9.7 and later
        "/var/lib/libvirt/qemu/channel/target/domain-7-db1/a",
    ],
)
def test_the_guest_agents_channel_is_libvirts_again(path: str) -> None:
    """Else the agent of the copy, which may be the only one that shows life, can never be asked."""
    live = LIVE.replace("/run/libvirt/qemu/channel/target/domain-7-db1/a", path)
    channel, mine = made(live).findall("./devices/channel")
    assert channel.get("type") == "unix" and channel.find("source") is None
    assert mine.get("type") == "file"


def test_interfaces_are_taps_on_no_bridge_and_the_same_to_the_guest() -> None:
    interfaces = made().findall("./devices/interface")
    assert [interface.get("type") for interface in interfaces] == ["ethernet", "ethernet"]
    assert [inside(interface, "target").attrib for interface in interfaces] == [
        {"dev": "rdbrabc-0", "managed": "yes"},
        {"dev": "rdbrabc-1", "managed": "yes"},
    ]
    assert [{child.tag for child in interface} for interface in interfaces] == [
        {"mac", "model", "mtu", "alias", "target"},
        {"mac", "model", "target"},
    ]


def test_nothing_names_the_host() -> None:
    """Every path is in the rehearsal's folder; no address, no bridge, no port."""
    root = made()
    text = ET.tostring(root, encoding="unicode")
    for outside in ("br0", "default", "/dev/pts", "/tmp", "10.0.0.9", "0.0.0.0", "5903", "pulseaudio", "/srv"):
        assert outside not in text, outside
    paths = re.findall(r'(?:path|file)="([^"]*)"', text)
    assert paths and all(path.startswith(f"{FOLDER}/") for path in paths), paths


def test_serial_and_its_console_share_a_file_and_the_agents_channel_stays() -> None:
    root = made()
    sources = [inside(device, "source").get("path") for device in root.iterfind("./devices/serial")]
    assert sources == [str(FOLDER / "serial.log"), str(FOLDER / "serial1.log")]
    consoles = [inside(device, "source").get("path") for device in root.iterfind("./devices/console")]
    assert consoles == [str(FOLDER / "serial.log"), str(FOLDER / "console1.log")]
    agent, mine = root.findall("./devices/channel")
    assert (agent.get("type"), agent.find("source")) == ("unix", None)
    assert mine.get("type") == "file"


def test_the_standbys_private_socket_is_not_taken_from_it() -> None:
    prepared, _ = prepare(LIVE, UUID)
    assert words(made(prepared)) == ["-incoming", "defer"]


@pytest.mark.parametrize(
    "device",
    [
        "<hostdev/>",
        "<redirdev type='tcp'/>",
        "<redirdev bus='usb' type='spicevmc'/><redirdev bus='usb' type='tcp'/>",
        "<vsock/>",
        "<rng model='virtio'><backend model='egd' type='udp'><source host='h' service='1'/></backend></rng>",
        "<pstore backend='acpi-erst'><path>/x</path></pstore>",
        "<smartcard mode='host'/>",
        "<filesystem type='mount'><source dir='/srv'/><target dir='x'/></filesystem>",
        "<input type='evdev'><source dev='/dev/input/event0'/></input>",
        "<graphics type='sdl' display=':0'/>",
        "<shmem name='x'/>",
        "<loudspeaker/>",
    ],
)
def test_a_device_that_leads_out_is_refused(device: str) -> None:
    with pytest.raises(CannotProtect, match="leads out"):
        made(LIVE.replace("</devices>", f"{device}</devices>"))


def test_a_network_of_the_command_line_is_refused() -> None:
    line = f"<q:commandline xmlns:q='{QEMU_NS}'><q:arg value='-netdev'/><q:arg value='user,id=n'/></q:commandline>"
    with pytest.raises(CannotProtect, match="-netdev"):
        made(LIVE.replace("</domain>", f"{line}</domain>"))
    for option, value in (
        ("--netdev", "user,id=n"), ("-drive", "file=/srv/d.raw,if=virtio"), ("--device", "e1000"), ("-s", "x"),
        ("-chardev", "socket,id=c,host=h,port=1"), ("-object", "remusdb-qmp"), ("-global", "a.b=c"),
    ):  # fmt: skip
        other = line.replace("-netdev", option).replace("user,id=n", value)
        with pytest.raises(CannotProtect, match=re.escape(f"{option} {value}")):
            made(LIVE.replace("</domain>", f"{other}</domain>"))


@pytest.mark.parametrize(
    ("address", "near"),
    [("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1"), ("10.0.0.254", "10.0.0.253"), ("10.0.1.255", "10.0.1.254"),
     ("10.0.1.0", "10.0.1.1"), ("fd77::10", "fd77::11")],
)  # fmt: skip
def test_the_probes_address(address: str, near: str) -> None:
    assert neighbour_of(address) == near
