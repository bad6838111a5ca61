# SPDX-License-Identifier: Apache-2.0
"""What counts as a change of a VM's devices, by its live XML: everything but what moves by itself."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from remusdb.vm.inventory import changes, inventory

NIC = """<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/><target dev='vnet0'/>
  <model type='virtio'/><alias name='net0'/></interface>"""
DISK = """<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/a.raw' index='2'/>
  <backingStore/><target dev='vda' bus='virtio'/><alias name='virtio-disk0'/></disk>"""
DRIVE = """<disk type='file' device='cdrom'><driver name='qemu'/><target dev='sda' bus='sata'/><readonly/>
  <alias name='sata0-0-0'/></disk>"""
CHANNEL = """<channel type='unix'><source mode='bind' path='/run/a'/><target type='virtio' name='org.a'
  state='disconnected'/><alias name='channel0'/></channel>"""
REST = """<controller type='usb' model='qemu-xhci'><alias name='usb'/></controller>
  <serial type='pty'><source path='/dev/pts/1'/><alias name='serial0'/></serial>
  <console type='pty'><source path='/dev/pts/1'/><alias name='serial0'/></console>
  <graphics type='vnc' port='5900'/><memballoon model='virtio'><alias name='balloon0'/></memballoon>"""


def vm(*devices: str, vcpus: str = "<vcpu placement='static' current='1'>4</vcpu>") -> ET.Element:
    everything = "".join(devices or (NIC, DISK, DRIVE, CHANNEL))
    return ET.fromstring(f"<domain id='3'>{vcpus}<devices>{everything}{REST}</devices></domain>")


def told(before: ET.Element, after: ET.Element) -> list[str]:
    return changes(inventory(before), inventory(after))


@pytest.mark.parametrize(
    ("what", "instead"),
    [
        ("<model type='virtio'/>", "<link state='down'/><model type='virtio'/>"),  # domif-setlink: in the device state
        ("<target dev='vda'", "<mirror type='network' job='copy'/><target dev='vda'"),  # our own block copy
        ("<backingStore/>", "<backingStore type='file'><source file='/b'/></backingStore>"),
        ("index='2'", "index='9'"),
        ("<target dev='vda'", "<iotune><total_iops_sec>9</total_iops_sec></iotune><target dev='vda'"),
        ("state='disconnected'", "state='connected'"),
        ("port='5900'", "port='5901' passwd='x'"),
        ("<memballoon model='virtio'>", "<memballoon model='virtio'><stats period='5'/>"),
        ("<target dev='sda' bus='sata'/>", "<source index='7'/><target dev='sda' bus='sata' tray='open'/>"),
        ("<driver name='qemu'/>", "<driver name='qemu' type='raw'/>"),  # what an ejected medium leaves
    ],
)
def test_what_moves_by_itself_is_no_change(what: str, instead: str) -> None:
    before = ET.tostring(vm(), encoding="unicode").replace("&quot;", "'").replace('"', "'")
    assert what.replace(" />", "/>") in before.replace(" />", "/>"), before
    after = before.replace(" />", "/>").replace(what, instead)
    assert after != before.replace(" />", "/>")
    assert told(vm(), ET.fromstring(after)) == []


def test_what_was_attached_and_detached_is_named() -> None:
    assert told(vm(DISK), vm(DISK, NIC)) == ["interface 52:54:00:00:00:01 was attached"]
    assert told(vm(DISK, NIC), vm(NIC)) == ["disk vda was detached"]
    assert told(vm(NIC), vm(NIC, DRIVE)) == ["drive sda was attached"]
    assert told(vm(NIC), vm(NIC, CHANNEL)) == ["channel org.a was attached"]
    dimm = "<memory model='dimm'><target><size>1</size></target><alias name='dimm0'/></memory>"
    assert told(vm(NIC), vm(NIC, dimm)) == ["memory dimm0 was attached"]


def test_what_nobody_thought_of_is_a_change() -> None:
    odd = "<teleporter target='moon'><alias name='tele0'/></teleporter>"
    assert told(vm(NIC), vm(NIC, odd)) == ["teleporter tele0 was attached"]
    assert told(vm(NIC, odd), vm(NIC, odd.replace("moon", "mars"))) == ["teleporter tele0 was changed"]


def test_another_bridge_or_file_is_a_change() -> None:
    assert told(vm(NIC), vm(NIC.replace("br0", "br1"))) == ["interface 52:54:00:00:00:01 was changed"]
    assert told(vm(DISK), vm(DISK.replace("/a.raw", "/b.raw"))) == ["disk vda was changed"]


def test_a_medium_that_comes_goes_or_is_changed() -> None:
    full = DRIVE.replace("<target", "<source file='/a.iso' index='4'/><backingStore/><target")
    assert told(vm(DRIVE), vm(full)) == ["a medium was put into drive sda"]
    assert told(vm(full), vm(DRIVE)) == ["the medium in drive sda was taken out"]
    assert told(vm(full), vm(full.replace("/a.iso", "/b.iso"))) == ["the medium in drive sda was changed"]


def test_a_number_of_vcpus_that_is_none_is_told_as_it_stands() -> None:
    assert told(vm(NIC), vm(NIC, vcpus="<vcpu>2qq</vcpu>")) == ["there are 2qq vCPUs, 1 before"]


def test_vcpus_are_counted_as_libvirt_tells_them() -> None:
    listed = """<vcpu placement='static'>4</vcpu><vcpus><vcpu id='0' enabled='yes'/><vcpu id='1' enabled='yes'/>
      <vcpu id='2' enabled='no'/><vcpu id='3' enabled='no'/></vcpus>"""
    assert told(vm(NIC), vm(NIC, vcpus=listed)) == ["there are 2 vCPUs, 1 before"]
    assert told(vm(NIC, vcpus="<vcpu current='2'>4</vcpu>"), vm(NIC, vcpus=listed)) == []
    assert told(vm(NIC, vcpus="<vcpu>4</vcpu>"), vm(NIC, vcpus=listed)) == ["there are 2 vCPUs, 4 before"]


def test_text_behind_a_device_is_not_the_devices() -> None:
    """It was read as a second document."""
    tree = ET.fromstring("<domain id='1'><devices><controller type='usb'/>text<rng/>&lt;</devices></domain>")
    assert [item.called for item in inventory(tree).values()][:1] == ["vCPUs"] and len(inventory(tree)) == 3


def test_many_devices_may_have_no_name_of_their_own() -> None:
    tree = ET.fromstring(f"<domain id='1'><devices>{'<rng/>' * 1500}</devices></domain>")
    assert len(inventory(tree)) == 1501
