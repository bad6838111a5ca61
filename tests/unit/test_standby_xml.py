# SPDX-License-Identifier: Apache-2.0
"""The standby's and the survivor's XML: from a plain VM, a prepared one, and one that was a standby itself once."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from remusdb.errors import CannotProtect
from remusdb.vm.prepare import CHARDEV, QEMU_NS, prepare, qmp_socket
from remusdb_agents.backup.standby.devices import Device
from remusdb_agents.backup.standby.xml import Images, standby_xml, survivor_xml

UUID = "2c1f1d0e-6d8f-4c7a-9b63-0f5b6a1f9e11"
IMAGES = {"vda": Path("/var/lib/remusdb/images/pg/vda.raw")}
BACK = {"vda": Path("/var/lib/remusdb/images/pg-back/vda.raw")}
MONITOR = qmp_socket(UUID)
PLAIN = """<domain type='kvm' id='7'><name>pg</name><seclabel type='dynamic' model='dac' relabel='yes'>
<label>+1:+1</label><imagelabel>+1:+1</imagelabel></seclabel>
<os><type machine='pc-q35-10.0'>hvm</type></os>
<devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/images/pg.qcow2' index='2'/>
<backingStore/><mirror type='network' job='copy'/><target dev='vda' bus='virtio'/></disk>
<interface type='bridge'><mac address='52:54:00:77:00:10'/><source bridge='br0'/><target dev='vnet3'/></interface>
</devices></domain>"""


def words(xml: str) -> list[str]:
    return [argument.get("value", "") for argument in ET.fromstring(xml).iter(f"{{{QEMU_NS}}}arg")]


def disk(xml: str) -> tuple[str | None, str | None]:
    """Path and format of the one disk."""
    found = ET.fromstring(xml).find("./devices/disk")
    assert found is not None
    source, driver = found.find("source"), found.find("driver")
    assert source is not None and driver is not None
    return source.get("file"), driver.get("type")


def promoted(live: str) -> str:
    """The live XML of the VM after a takeover: the standby's, with what libvirt writes into it."""
    xml = standby_xml(live, IMAGES, {}, MONITOR)
    return xml.replace("<domain", "<domain id='9'", 1).replace(
        "<source bridge=", "<target dev='vnet8'/><source bridge="
    )


def test_a_plain_vm() -> None:
    standby, survivor = standby_xml(PLAIN, IMAGES, {}, MONITOR), survivor_xml(PLAIN, IMAGES, {}, MONITOR)
    assert words(standby)[:2] == ["-incoming", "defer"]
    assert sum(CHARDEV in word for word in words(standby)) == 2  # its socket, and the monitor on it
    assert words(survivor) == [] and "commandline" not in survivor
    for xml in (standby, survivor):
        assert disk(xml) == (str(IMAGES["vda"]), "raw")
        assert "mirror" not in xml and "seclabel" not in xml and "vnet3" not in xml and " id=" not in xml


def test_no_private_monitor_where_qemu_may_not_have_one() -> None:
    prepared, _ = prepare(PLAIN, UUID)
    assert words(standby_xml(prepared, IMAGES, {}, None)) == ["-incoming", "defer"]
    assert words(survivor_xml(prepared, IMAGES, {}, None)) == []


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_promoted_vm_goes_back(rounds: int) -> None:
    """However often: one `-incoming defer`, one monitor, none of it in the definition, disks on the new images."""
    live = PLAIN
    for _ in range(rounds):
        live = promoted(live)
    standby, survivor = standby_xml(live, BACK, {}, MONITOR), survivor_xml(live, BACK, {}, MONITOR)
    assert words(standby) == words(standby_xml(PLAIN, BACK, {}, MONITOR))
    assert words(survivor) == []
    for xml in (standby, survivor):
        assert disk(xml) == (str(BACK["vda"]), "raw")
        assert "vnet8" not in xml


def test_what_the_operator_wrote_stays() -> None:
    """A prepared VM is still prepared after any number of takeovers, and has its one monitor where it was."""
    prepared, _ = prepare(PLAIN, UUID)
    mine = words(prepared)
    live = promoted(promoted(prepared))
    assert words(standby_xml(live, BACK, {}, MONITOR)) == [*mine, "-incoming", "defer"]
    assert words(survivor_xml(live, BACK, {}, MONITOR)) == mine
    assert prepare(survivor_xml(live, BACK, {}, MONITOR), UUID)[1] == []


def both(body: str, devices: str = "", images: Images = IMAGES) -> list[ET.Element]:
    """The standby and the definition of a VM with this in it."""
    live = f"<domain type='kvm' id='7'><name>a&amp;b</name>{body}<devices>{devices}</devices></domain>"
    return [ET.fromstring(xml) for xml in (standby_xml(live, images, {}, None), survivor_xml(live, images, {}, None))]


def test_the_generation_id_is_the_same() -> None:
    """The guest went on: to it, nothing was rolled back."""
    for root in both("<genid>2c1f1d0e-6d8f-4c7a-9b63-0f5b6a1f9e11</genid>"):
        assert root.findtext("genid") == "2c1f1d0e-6d8f-4c7a-9b63-0f5b6a1f9e11" and root.findtext("name") == "a&b"


def test_no_label_of_the_other_host_holds_here() -> None:
    """One can switch the confinement of QEMU off, or make it root."""
    labels = (
        "<seclabel type='none' model='dac'/><seclabel type='static' model='dac' relabel='no'><label>+0:+0</label>"
        "</seclabel><seclabel type='dynamic' model='selinux'><baselabel>b</baselabel></seclabel>"
    )
    source = f"<source file='/d' index='1'>{labels}</source><target dev='vda'/>"
    for root in both(labels, f"<disk type='file' device='disk'>{source}</disk><serial type='pty'>{source}</serial>"):
        assert list(root.iter("seclabel")) == []


def test_what_a_guest_prints_goes_to_files_of_its_own_name() -> None:
    """libvirt opens them as root: a sender's path could be another VM's log, or anything else."""
    devices = (
        "<serial type='file'><source path='/var/log/libvirt/qemu/other.log' append='on'/><log file='/etc/x'/></serial>"
        "<serial type='pty' tty='/dev/pts/1'><source path='/dev/pts/1'/><log file='/y' append='on'/></serial>"
        "<parallel type='pty'><source path='/dev/pts/2'/></parallel>"
        "<parallel type='file'><source path='/z'/></parallel>"
        "<console type='file'><source path='/etc/passwd'/><target type='serial'/></console>"
        "<channel type='unix'><source path='/run/docker.sock' mode='connect'/><target name='a' state='on'/></channel>"
    )
    at = "/var/log/libvirt/a%26b-"
    for root in both("", devices):
        found = [(one.tag, dict(one.attrib)) for device in root.iterfind("./devices/*") for one in device]
        assert found == [
            ("source", {"path": f"{at}serial.log", "append": "on"}),
            ("log", {"file": f"{at}serial-log.log"}),
            ("log", {"file": f"{at}serial1-log.log", "append": "on"}),
            ("source", {"path": f"{at}parallel1.log"}),
            ("target", {"type": "serial"}),
            ("source", {"path": f"{at}serial.log"}),
            ("target", {"name": "a"}),
        ]


def test_what_is_the_other_hosts_alone_is_taken_out() -> None:
    body = (
        "<resource><partition>/x</partition></resource><perf><event name='cmt' enabled='yes'/></perf>"
        "<cputune><cachetune vcpus='0'/><shares>9</shares></cputune><on_crash>coredump-destroy</on_crash>"
        "<blkiotune><weight>9</weight><device><path>/dev/sda</path></device></blkiotune>"
        "<metadata><r:of xmlns:r='urn:remusdb:rehearsal'>x</r:of><o:id xmlns:o='http://libosinfo.org'/></metadata>"
    )
    devices = (
        "<graphics type='vnc' socket='/tmp/v'><listen type='socket' socket='/v'/>"
        "<listen type='network' network='n' address='192.0.2.1'/></graphics>"
    )
    for root in both(body, devices):
        text = ET.tostring(root, encoding="unicode")
        for gone in ("/x", "cmt", "cachetune", "/dev/sda", "coredump", "urn:remusdb", "/tmp", "/v", "192.0"):
            assert gone not in text, gone
        for kept in ("<shares>9", "<weight>9", "libosinfo", '<listen type="socket"', 'network="n"'):
            assert kept in text, kept


def test_nothing_that_is_said_to_qemu_is_copied() -> None:
    prepared, _ = prepare(PLAIN, UUID)
    elsewhere = prepared.replace(str(MONITOR), "/run/other.sock")
    assert "/run/other.sock" not in standby_xml(elsewhere, IMAGES, {}, MONITOR)
    assert words(survivor_xml(elsewhere, IMAGES, {}, MONITOR)) == words(prepared)
    line = f"<q:commandline xmlns:q='{QEMU_NS}'><q:arg value='-D'/><q:arg value='/f'/></q:commandline></domain>"
    with pytest.raises(CannotProtect, match="-D /f"):
        standby_xml(PLAIN.replace("</domain>", line), IMAGES, {}, MONITOR)


def test_a_disk_without_an_image_is_not_started() -> None:
    with pytest.raises(CannotProtect, match="vda"):
        standby_xml(PLAIN, {}, {}, MONITOR)


def test_what_only_qcow2_has_goes_with_it() -> None:
    driver = (
        "<driver name='qemu' type='qcow2' cache='none' discard_no_unref='on'><metadata_cache><max_size unit='bytes'>"
    )
    more = "1048576</max_size></metadata_cache><statistics/></driver><source file='/a' index='1'/><target dev='vda'/>"
    for root in both("", f"<disk type='file' device='disk'>{driver}{more}</disk>"):
        found = root.find("./devices/disk/driver")
        assert found is not None and found.attrib == {"name": "qemu", "type": "raw", "cache": "none"}
        assert [child.tag for child in found] == ["statistics"]


def test_volumes_and_block_devices_become_files_or_the_devices_that_are_named() -> None:
    source = "<source pool='default' volume='db.qcow2' index='1'><slices><slice offset='4' size='9'/></slices>"
    disks = (
        f"<disk type='volume' device='disk'><driver type='qcow2'/>{source}</source><target dev='vda'/></disk>"
        "<disk type='block' device='disk'><driver type='raw'/><source dev='/dev/vg/a'/><target dev='vdb'/></disk>"
        "<disk type='file' device='disk'><driver type='raw'/><source file='/b'/><target dev='vdc'/></disk>"
    )
    images = IMAGES | {"vdb": Device(Path("/dev/vg/b"), 4096, 4096), "vdc": Device(Path("/dev/vg/c"), 4096, 8192)}
    slices = '<slices><slice type="storage" offset="0" size="4096"/></slices>'
    sources = (
        f'<source file="{IMAGES["vda"]}"/><target dev="vda"/>',
        '<source dev="/dev/vg/b"/><target dev="vdb"/>',
        f'<source dev="/dev/vg/c">{slices}</source><target dev="vdc"/>',
    )
    for root in both("", disks, images):
        found = [ET.tostring(disk, encoding="unicode").replace(" />", "/>") for disk in root.iterfind("./devices/disk")]
        for disk, kind, expected in zip(found, ("file", "block", "block"), sources, strict=True):
            assert disk == f'<disk type="{kind}" device="disk"><driver type="raw"/>{expected}</disk>'


def test_empty_drives_stay_empty() -> None:
    """A CD that was ejected while the VM ran keeps its <source> in the live XML, without a medium."""
    drives = (
        "<disk type='file' device='cdrom'><source index='3'/><target dev='sda'/><readonly/></disk>"
        "<disk type='file' device='floppy'><target dev='fda'/></disk>"
    )
    for root in both("", drives):
        assert [disk.get("device") for disk in root.iterfind("./devices/disk")] == ["cdrom", "floppy"]
        assert root.findall("./devices/disk/source") == []


@pytest.mark.parametrize("form", ["", "<source file='/v'/>", "/var/lib/libvirt/qemu/nvram/a_VARS.qcow2"])
def test_variables_are_in_the_file_of_this_host(form: str) -> None:
    """Whatever held them: with the replica it is a raw file. The template stays, for a file that is lost one day."""
    live = f"<domain id='7'><os firmware='efi'><nvram template='/t.fd' type='file' format='qcow2'>{form}</nvram></os>"
    for xml in (
        standby_xml(f"{live}</domain>", {}, {}, None, Path("/i/nvram.fd")),
        survivor_xml(f"{live}</domain>", {}, {}, None, Path("/i/nvram.fd")),
    ):
        found = ET.fromstring(xml).find("./os/nvram")
        assert found is not None and found.text == "/i/nvram.fd" and not len(found)
        assert found.attrib == {"template": "/t.fd", "format": "raw"}
