# SPDX-License-Identifier: Apache-2.0
"""What a refusal says to do, done to the letter: libvirt's own virsh on its test driver, and the VM is taken then."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from xml.sax.saxutils import escape

import libvirt
import pytest

from remusdb.allow.judge import judge
from remusdb.allow.problem import Vm, edit, joined
from remusdb.preflight import gather as facts_module
from remusdb.preflight.decide import decide
from remusdb.preflight.gather import HostInventory, Inventory, VmInventory
from remusdb.vm.states import state_of

NAMES = ("db1", "it's odd & old", 'a "b" <c>', "x;y $HOME `z` \\")
BAD = """<domain type='test'><name>{name}</name><memory unit='KiB'>65536</memory>
<os><type arch='x86_64' machine='pc-q35-8.2'>hvm</type></os><on_poweroff>destroy</on_poweroff>{event}<devices>
<disk type='file' device='{drive}'><source file='/x.iso'/><target dev='{target}' bus='{bus}'/>{readonly}</disk>
</devices></domain>"""


def virsh(definition: Path, *commands: str) -> str:
    """Run them one after the other, in one virsh; what the last one printed, once all have succeeded."""
    lines = "\n".join((f"define {definition}", *commands))
    done = subprocess.run(
        ["virsh", "-q", "-c", "test:///default"], input=lines, capture_output=True, text=True, check=False, timeout=60
    )
    assert "error:" not in done.stderr, done.stderr
    return done.stdout[done.stdout.index("<domain") : done.stdout.rindex("</domain>") + len("</domain>")]


def problems(xml: str) -> list[tuple[str, str]]:
    """(area, hint), as of a VM of QEMU's."""
    root = ET.fromstring(xml)
    root.set("type", "kvm")
    return [(problem.area, problem.hint) for problem in judge(root)]


def defined(folder: Path, name: str, **parts: str) -> tuple[Path, str]:
    given = {"event": "", "drive": "cdrom", "target": "sda", "bus": "sata", "readonly": "<readonly/>"} | parts
    path = folder / "vm.xml"
    path.write_text(BAD.format(name=escape(name), **given))
    return path, path.read_text()


def quoted(hint: str) -> str:
    """The VM's name as the hint writes it."""
    return (
        hint.removeprefix("eject it: ").removeprefix("virsh set-lifecycle-action ").removeprefix("virsh change-media ")
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("event", ["crash", "coredump"])
def test_a_vm_that_libvirt_starts_again(tmp_path: Path, name: str, running: bool, event: str) -> None:
    action = "restart" if event == "crash" else "coredump-restart"
    path, xml = defined(tmp_path, name, event=f"<on_crash>{action}</on_crash>", drive="floppy", target="fda", bus="fdc")
    xml = xml.replace("<domain", "<domain id='1'") if running else xml
    [(_, hint)] = [found for found in problems(xml) if found[0] == "on_crash"]
    shown = quoted(hint).partition(" crash destroy")[0]
    begin = (f"start {shown}",) if running else ()
    for which in ("", "--inactive"):
        after = virsh(path, *begin, hint.removeprefix("virsh "), f"dumpxml {which} {shown}")
        assert "on_crash" not in [area for area, _ in problems(after)], after


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("drive", "target", "bus"), [("cdrom", "sda", "sata"), ("floppy", "fda", "fdc")])
def test_a_medium_is_ejected(tmp_path: Path, name: str, drive: str, target: str, bus: str) -> None:
    path, xml = defined(tmp_path, name, drive=drive, target=target, bus=bus)
    [(area, hint)] = problems(xml)
    assert area == "media"
    shown = quoted(hint).partition(f" {target} --eject")[0]
    command = hint.removeprefix("eject it: virsh ")
    assert problems(virsh(path, f"start {shown}", command, f"dumpxml {shown}")) == []


MEND = "names the disk; repair what is behind it (is it full?), then"


def shown_hint(**vm: object) -> str:
    xml = BAD.format(name="a &amp; b", event="", drive="floppy", target="fda", bus="fdc", readonly="")
    inventory = VmInventory(**{"name": "a & b", "xml": xml, "running": True, "qemu_version": (10, 0, 2), **vm})  # type: ignore[arg-type]
    [check] = [one for one in decide(Inventory(vm=inventory, host=HostInventory())) if one.name == "running"]
    return f"{check.detail} | {check.hint}"


@pytest.mark.parametrize(
    ("state", "paused", "told"),
    [
        ("paused", "by an operator", "it is paused by an operator | virsh resume 'a & b'"),
        ("paused", "by its watchdog", "it is paused by its watchdog | virsh resume 'a & b'"),
        (
            "paused",
            "by QEMU for an I/O error",
            f"it is paused by QEMU for an I/O error | virsh domblkerror 'a & b' {MEND}: virsh resume 'a & b'",
        ),
        ("suspended by the guest", "", "it is suspended by the guest | virsh dompmwakeup 'a & b'"),
        ("not running", "", "it is not running | virsh start 'a & b'"),
        ("shutting down", "", "it is shutting down | once it is off: virsh start 'a & b'"),
        ("crashed", "", "it is crashed | virsh destroy 'a & b', then: virsh start 'a & b'"),
    ],
)
def test_a_vm_that_does_not_run_says_why_and_how_it_would(state: str, paused: str, told: str) -> None:
    assert shown_hint(state=state, paused=paused, running=state != "not running") == told


def test_a_vm_that_is_paused_is_resumed_to_the_letter(tmp_path: Path) -> None:
    path, _ = defined(tmp_path, "a & b")
    resume = shown_hint(state="paused").partition("| virsh ")[2]
    after = virsh(path, "start 'a & b'", "suspend 'a & b'", resume, "domstate 'a & b'", "dumpxml 'a & b'")
    assert after


DISKS = [
    ("<readonly/>", "file", "virtio", "virsh detach-disk 'a & b' vdb --live --config"),
    ("<readonly/>", "file", "sata", "virsh detach-disk 'a & b' vdb --config; in effect from the VM's next start"),
    ("<shareable/>", "file", "virtio", "remove <shareable/> from vdb"),
    ("<transient/>", "file", "virtio", "remove <transient/> from vdb"),
    ("<encryption format='luks'/>", "file", "virtio", "encrypt inside the guest"),
    ("<source protocol='rbd' name='p/v'/>", "network", "virtio", "map it on this host (rbd map"),
    ("<driver name='qemu' type='vmdk'/>", "file", "virtio", "qemu-img convert -O qcow2"),
]


@pytest.mark.parametrize(("part", "kind", "bus", "hint"), DISKS)
def test_each_disk_that_is_refused_has_a_hint_of_its_own(part: str, kind: str, bus: str, hint: str) -> None:
    disk = f"<disk type='{kind}' device='disk'>{part}<target dev='vdb' bus='{bus}'/></disk>"
    xml = f"<domain type='kvm' id='1'><name>a &amp; b</name><devices>{disk}</devices></domain>"
    [(area, found)] = problems(xml)
    assert area == "disks" and hint in found
    others = [other for *_, other in DISKS if other != hint]
    assert not any(other in found for other in others if other not in hint and "detach" not in other)


@pytest.mark.parametrize(("tag", "word"), [("filterref", "filterref"), ("bandwidth", "bandwidth")])
def test_what_the_gate_passes_by_is_taken_out(tag: str, word: str) -> None:
    nic = f"<interface type='bridge'><source bridge='br0'/><{tag}/></interface>"
    [(area, hint)] = problems(f"<domain type='kvm'><name>v</name><devices>{nic}</devices></domain>")
    assert area == "interfaces" and f"remove <{word}>" in hint and "from the VM's next start" in hint


def test_another_architecture_is_told_that_there_is_no_way() -> None:
    xml = "<domain type='qemu'><name>v</name><os><type arch='aarch64' machine='virt-10.0'>hvm</type></os></domain>"
    assert problems(xml) == [("machine", "only x86-64 guests can be protected: the capture is written for them")]


@pytest.mark.parametrize(
    ("machine", "canonical", "hint"),
    [("q35", "pc-q35-10.0", "machine='pc-q35-10.0'"), ("pc-i440fx-lts", "pc-i440fx-noble", "machine='pc-i440fx-noble'"),
     ("pc-q35-noble", "pc-q35-noble", ""), ("pc-q35-noble", "", "")],
)  # fmt: skip
def test_an_alias_is_what_the_capabilities_say_it_is(machine: str, canonical: str, hint: str) -> None:
    xml = f"<domain type='kvm'><name>v</name><os><type arch='x86_64' machine='{machine}'>hvm</type></os></domain>"
    inventory = Inventory(vm=VmInventory("v", xml, True, canonical=canonical), host=HostInventory())
    [check] = [one for one in decide(inventory) if one.name == "machine"]
    assert check.ok is (hint == "") and hint in check.hint


def test_libvirt_is_asked_with_the_vms_own_emulator() -> None:
    class Connection:
        asked: tuple[str, ...] = ()

        def getDomainCapabilities(self, *asked: str) -> str:
            self.asked = asked
            if asked[2] == "pc-q35-99.0":
                raise libvirt.libvirtError("the machine is not supported by emulator")
            return "<domainCapabilities><machine>pc-q35-10.0</machine></domainCapabilities>"

    xml = """<domain type='kvm'><os><type arch='x86_64' machine='q35'>hvm</type></os>
    <devices><emulator>/opt/qemu</emulator></devices></domain>"""
    connection = Connection()
    assert facts_module._canonical_machine(connection, ET.fromstring(xml)) == "pc-q35-10.0"
    assert connection.asked == ("/opt/qemu", "x86_64", "q35", "kvm")
    unknown = ET.fromstring(xml.replace("q35", "pc-q35-99.0"))
    assert facts_module._canonical_machine(connection, unknown) == ""


def test_the_default_huge_page_of_this_host(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("HugePages_Total:       0\nHugepagesize:    1048576 kB\n")
    assert facts_module._huge_page_bytes(meminfo) == 1 << 30
    assert facts_module._huge_page_bytes(tmp_path / "absent") == 0


@pytest.mark.parametrize(
    ("huge", "default", "fine"),
    [("<page size='2' unit='MiB'/>", 1 << 30, True), ("", 1 << 30, False), ("", 2 << 20, True),
     ("<page size='1' unit='GiB'/>", 2 << 20, False)],
)  # fmt: skip
def test_huge_pages_are_refused_or_come_with_advice(huge: str, default: int, fine: bool) -> None:
    backing = f"<memoryBacking><hugepages>{huge}</hugepages></memoryBacking>"
    xml = f"<domain type='kvm'><name>v</name>{backing}</domain>"
    inventory = Inventory(vm=VmInventory("v", xml, True), host=HostInventory(huge_page_bytes=default))
    checks = {check.name: check for check in decide(inventory)}
    assert checks["guest memory"].ok is fine
    assert not checks["memory pages"].ok and checks["memory pages"].level == "advice"
    assert fine or "1024 MiB" in checks["guest memory"].detail


def test_hints_for_one_editor_are_one_hint() -> None:
    vm = Vm("'a: b'", running=True)
    other = "virsh detach-disk 'a: b' vdb --live --config"
    assert joined(vm, [other, edit(vm, "this"), other, edit(vm, "that"), edit(vm, "this"), other]) == (
        f"virsh edit 'a: b': this, that; in effect from the VM's next start; {other}"
    )
    assert joined(vm, []) == ""


def test_the_state_of_a_domain_in_words() -> None:
    connection = libvirt.open("test:///default")
    domain = connection.lookupByName("test")
    assert state_of(domain) == ("running", "")
    domain.suspend()
    assert state_of(domain) == ("paused", "by an operator")
    domain.destroy()
    assert state_of(domain) == ("not running", "")
    domain.create()
    assert state_of(domain) == ("running", "")
    connection.close()
