# SPDX-License-Identifier: Apache-2.0
"""The standby's and the survivor's XML: from a plain VM, a prepared one, and one that was a standby itself once."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from remusdb.vm.prepare import CHARDEV, QEMU_NS, prepare, qmp_socket
from remusdb_agents.standby_xml import standby_xml, survivor_xml

IMAGES = {"vda": Path("/var/lib/remusdb/images/pg/vda.raw")}
BACK = {"vda": Path("/var/lib/remusdb/images/pg-back/vda.raw")}
MONITOR = qmp_socket("pg")
PLAIN = """<domain type='kvm' id='7'><name>pg</name><seclabel type='none'/>
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
    standby, survivor = standby_xml(PLAIN, IMAGES, {}, MONITOR), survivor_xml(PLAIN, IMAGES, {}, True)
    assert words(standby)[:2] == ["-incoming", "defer"]
    assert sum(CHARDEV in word for word in words(standby)) == 2  # its socket, and the monitor on it
    assert words(survivor) == [] and "commandline" not in survivor
    for xml in (standby, survivor):
        assert disk(xml) == (str(IMAGES["vda"]), "raw")
        assert "mirror" not in xml and "seclabel" not in xml and "vnet3" not in xml and " id=" not in xml


def test_no_private_monitor_where_qemu_may_not_have_one() -> None:
    prepared, _ = prepare(PLAIN, "pg")
    assert words(standby_xml(prepared, IMAGES, {}, None)) == ["-incoming", "defer"]
    assert words(survivor_xml(prepared, IMAGES, {}, False)) == []


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_promoted_vm_goes_back(rounds: int) -> None:
    """However often: one `-incoming defer`, one monitor, none of it in the definition, disks on the new images."""
    live = PLAIN
    for _ in range(rounds):
        live = promoted(live)
    standby, survivor = standby_xml(live, BACK, {}, MONITOR), survivor_xml(live, BACK, {}, True)
    assert words(standby) == words(standby_xml(PLAIN, BACK, {}, MONITOR))
    assert words(survivor) == []
    for xml in (standby, survivor):
        assert disk(xml) == (str(BACK["vda"]), "raw")
        assert "vnet8" not in xml


def test_what_the_operator_wrote_stays() -> None:
    """A prepared VM is still prepared after any number of takeovers, and has its one monitor where it was."""
    prepared, _ = prepare(PLAIN, "pg")
    mine = words(prepared)
    live = promoted(promoted(prepared))
    assert words(standby_xml(live, BACK, {}, MONITOR)) == [*mine, "-incoming", "defer"]
    assert words(survivor_xml(live, BACK, {}, True)) == mine
    assert prepare(survivor_xml(live, BACK, {}, True), "pg")[1] == []
