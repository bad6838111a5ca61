# SPDX-License-Identifier: Apache-2.0
"""What a VM's XML names of its host. libvirt's own schema is walked: no path of it is forgotten."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from remusdb import safexml
from remusdb.preflight import needs

SCHEMA = Path("/usr/share/libvirt/schemas")
RNG = "{http://relaxng.org/ns/structure/1.0}"
PATH_TYPES = {"absFilePath", "filePath", "absDirPath", "dirPath"}

# Paths of the schema that the backup is not asked for, and why. Anything else must be in `needs`.
NOT_NEEDED = {
    "the standby has images of its own, and what is no file or block device is refused": {
        "disk/source/@dir", "disk/source/@path", "mirror/@file", "host/@socket", "identity/@agentsock",
    },
    "the variables are a part of the VM, and copied like a disk": {"os/nvram"},
    "other hypervisors' VMs": {"os/init", "os/initdir", "root"},
    "chosen again by the host's libvirt": {
        "resource/partition", "@tty", "console/@tty", "graphics/@socket", "listen/@socket", "emulator",
    },
    "taken out: a block device of the other host's": {"blkiotune/device/path"},
    "what a guest prints goes to a file that the backup names": {"source/@path", "log/@file", "audio/@path"},
    "refused: a part of this host, or state outside of QEMU": {
        "filesystem/source/@file", "filesystem/source/@dev", "filesystem/source/@dir", "filesystem/source/@socket",
        "binary/@path", "interface/source/@path", "shmem/server/@path", "device/@path", "source/block", "source/char",
        "pstore/path", "backend/@logFile", "downscript/@path", "audio/@runtimeDir",
    },
}  # fmt: skip


def schema_paths() -> set[str]:
    """Every place of a path: its element, the one around it, and its attribute, as far as the schema nests them."""
    found = set()
    for name in ("domaincommon.rng", "storagecommon.rng"):
        root = ET.parse(SCHEMA / name).getroot()
        parents = {child: parent for parent in root.iter() for child in parent}
        for ref in root.iter(f"{RNG}ref"):
            if ref.get("name") in PATH_TYPES:
                found.add(_place(ref, parents))
    return found


def _place(node: ET.Element, parents: dict[ET.Element, ET.Element]) -> str:
    steps: list[str] = []
    define = ""
    while node in parents:
        node = parents[node]
        if node.tag == f"{RNG}attribute":
            steps.append(f"@{node.get('name')}")
        elif node.tag == f"{RNG}element":
            steps.append(node.get("name") or "*")
        elif node.tag == f"{RNG}define":
            define = node.get("name") or ""
    place = "/".join(reversed(steps))
    return f"disk/{place}" if define.startswith("diskSource") and place.startswith("source/") else place


def test_every_path_of_libvirts_schema_is_asked_for_or_named_as_not_needed() -> None:
    asked = [f"{xpath}/@{attribute}" if attribute else xpath for xpath, attribute, *_ in needs._OPENED]
    plain = [re.sub(r"\[[^]]*\]", "", path).removeprefix("./") for path in asked]
    spared = {place for places in NOT_NEEDED.values() for place in places}
    places = schema_paths()
    assert len(places) > 40
    assert {place for place in places if not _covered(place, plain)} == spared


def _covered(place: str, asked: list[str]) -> bool:
    """The schema's place may begin in the middle of the document, and `*` stands for any element."""
    steps = place.split("/")
    for path in asked:
        tail = path.split("/")[-len(steps) :]
        if len(tail) == len(steps) and all(mine in ("*", step) for mine, step in zip(tail, steps, strict=True)):
            return True
    return False


XML = """<domain type='kvm'><name>db</name><memory unit='GiB'>2</memory><vcpu cpuset='0-3,^2'>2</vcpu>
<cputune><vcpupin vcpu='0' cpuset='1'/><emulatorpin cpuset='5'/><iothreadpin iothread='1' cpuset='6-7'/></cputune>
<numatune><memory nodeset='0'/><memnode cellid='0' nodeset='1'/></numatune>
<sysinfo type='fwcfg'><entry name='a' file='/srv/a'/><entry name='b'>text</entry></sysinfo>
<sysinfo type='smbios'><bios><entry name='vendor'>/not/a/path</entry></bios></sysinfo>
<os><loader type='rom'>/fw</loader><nvram template='/vars'>/var/db.fd</nvram><kernel>/k</kernel>
<initrd>/i</initrd><dtb>/d</dtb>
<acpi><table type='slic'>/slic</table></acpi><cmdline>/no/path</cmdline></os>
<devices><emulator>/bin/q</emulator>
<disk type='file' device='disk'><source file='/disk.raw'/><target dev='vda'/></disk>
<disk type='file' device='cdrom'><source file='/cd.iso'/><target dev='sda'/></disk>
<interface type='bridge'><source bridge='br0'/><target dev='vnet1'/><rom file='/rom'/></interface>
<interface type='bridge'><source bridge='br0'/><target dev='db-tap'/></interface>
<serial type='file'><source path='/log/s'/><log file='/log/l'/></serial>
<serial type='pty'><source path='/dev/pts/1'/></serial>
<channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/1-db/x'/></channel>
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
<graphics type='vnc' port='5901' autoport='no' websocket='5701'><listen type='address' address='192.0.2.1'/></graphics>
<graphics type='spice' autoport='yes' listen='::1'><listen type='address' address='::1'/></graphics>
<graphics type='vnc'><listen type='socket' socket='/var/lib/libvirt/qemu/domain-1-db/vnc.sock'/></graphics>
</devices><metadata><x>/metadata</x></metadata></domain>"""


def test_what_a_vm_names() -> None:
    tree = safexml.parse(XML)
    assert [one.path for one in needs.paths(tree)] == [
        "/fw", "/vars", "/k", "/i", "/d", "/slic", "/srv/a", "/rom", "/cd.iso", "/dev/urandom",
    ]  # fmt: skip
    assert [str(one) for one in needs.listens(tree)] == ["192.0.2.1:5901", "192.0.2.1:5701", "[::1]:0"]
    assert needs.own_taps(tree) == ["db-tap"]
    pins = {"vcpu": {0, 1, 3}, "vcpupin 0": {1}, "emulatorpin": {5}, "iothreadpin 1": {6, 7}}
    assert needs.cpu_pins(tree) == pins
    assert needs.nodes(tree) == {0, 1}
    assert needs.memory_bytes(tree) == 2 << 30


@pytest.mark.parametrize(
    ("text", "found"),
    [("0-3,8", {0, 1, 2, 3, 8}), ("0-7,^2-3", {0, 1, 4, 5, 6, 7}), ("", set()), ("a", set()), ("0-99999999999", set())],
)
def test_sets(text: str, found: set[int]) -> None:
    assert needs.parse_set(text) == found


@pytest.mark.parametrize(
    ("text", "unit", "size"),
    [("2", "M", 2 << 20), ("2048", "KiB", 2 << 20), ("1", "GiB", 1 << 30), ("1", "GB", 10**9), ("7", "bytes", 7),
     ("x", "KiB", 0), (None, "KiB", 0), ("1", "lots", 0)],
)  # fmt: skip
def test_sizes(text: str | None, unit: str, size: int) -> None:
    assert needs.size_bytes(text, unit) == size


def test_huge_pages() -> None:
    assert needs.huge_page_bytes(safexml.parse(XML), 2 << 20) == set()
    plain = safexml.parse("<domain><memoryBacking><hugepages/></memoryBacking></domain>")
    assert needs.huge_page_bytes(plain, 2 << 20) == {2 << 20}
    sized = safexml.parse(
        "<domain><memoryBacking><hugepages><page size='1' unit='G'/></hugepages></memoryBacking></domain>"
    )
    assert needs.huge_page_bytes(sized, 2 << 20) == {1 << 30}
