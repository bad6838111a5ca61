# SPDX-License-Identifier: Apache-2.0
"""The XML that another host sends, judged as if it meant harm: refused, or harmless once it is started here."""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest

from remusdb.config import AgentConfig, load_agent
from remusdb.core.messages import Disk, Hello
from remusdb.errors import CannotProtect, RemusError
from remusdb.names import VmName
from remusdb.vm.prepare import QEMU_NS, prepare, qmp_socket
from remusdb_agents.backup.standby.here import fitted, look
from remusdb_agents.backup.standby.host_side import choose_emulator, strip
from remusdb_agents.backup.standby.judge import judge
from remusdb_agents.backup.standby.limits import memory_bytes
from remusdb_agents.backup.standby.xml import COMMAND_LINE, standby_xml, survivor_xml
from tests.unit.domain_schema import ANY, Schema

UUID = "2c1f1d0e-6d8f-4c7a-9b63-0f5b6a1f9e11"
# What libvirt gives of a VM that runs: with all that it chose for this run on its host.
LIVE = f"""<domain type='kvm' id='7'><name>pg</name><uuid>{UUID}</uuid>
<title>PG 16/17</title><description>see https://wiki/pg</description>
<metadata><libosinfo xmlns='http://libosinfo.org/xmlns/libvirt/domain/1.0'><os id='http://debian.org/12'/></libosinfo></metadata>
<memory unit='KiB'>1048576</memory><currentMemory unit='KiB'>1048576</currentMemory>
<vcpu placement='static' cpuset='0-1'>2</vcpu><iothreads>1</iothreads>
<cputune><shares>2048</shares><vcpupin vcpu='0' cpuset='1'/></cputune>
<resource><partition>/machine</partition></resource>
<sysinfo type='smbios'><system><entry name='manufacturer'>A/S</entry>
<entry name='uuid'>{UUID}</entry></system></sysinfo>
<sysinfo type='fwcfg'><entry name='opt/org.example/x'>/text</entry></sysinfo>
<os firmware='efi'><type arch='x86_64' machine='pc-q35-10.0'>hvm</type>
<firmware><feature enabled='no' name='secure-boot'/></firmware>
<loader readonly='yes' type='pflash' format='raw'>FOLDER/code.fd</loader>
<nvram template='FOLDER/vars.fd' templateFormat='raw' format='raw'>/var/lib/libvirt/qemu/nvram/pg_VARS.fd</nvram>
<kernel>FOLDER/kernel</kernel><cmdline>root=/dev/vda rw</cmdline><boot dev='hd'/></os>
<features><acpi/><apic/><hyperv mode='custom'><relaxed state='on'/></hyperv></features>
<cpu mode='custom' match='exact' check='full'><model fallback='forbid'>Nehalem</model>
<feature policy='require' name='vme'/></cpu>
<clock offset='timezone' timezone='Europe/Berlin'><timer name='rtc' tickpolicy='catchup'/></clock>
<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
<pm><suspend-to-mem enabled='no'/></pm>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
<source file='/var/lib/libvirt/images/pg.qcow2' index='2'/><backingStore type='file' index='3'><format type='raw'/>
<source file='/base'/><backingStore/></backingStore><target dev='vda' bus='virtio'/><serial>a/b</serial>
<alias name='virtio-disk0'/><address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/></disk>
<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
<controller type='usb' index='0' model='qemu-xhci' ports='15'><alias name='usb'/></controller>
<interface type='network'><mac address='52:54:00:77:00:10'/><source network='default' portid='{UUID}' bridge='br0'/>
<target dev='vnet3'/><model type='virtio'/><driver name='vhost' queues='2'/><backend tap='/dev/net/tun'/></interface>
<serial type='file'><source path='/var/log/libvirt/pg-serial.log'/><target type='isa-serial' port='0'/></serial>
<console type='file'><source path='/var/log/libvirt/pg-serial.log'/><target type='serial' port='0'/></console>
<channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/7-pg/org.qemu.guest_agent.0'/>
<target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
<graphics type='vnc' port='5900' autoport='yes' listen='127.0.0.1'>
<listen type='address' address='127.0.0.1'/></graphics>
<audio id='1' type='none'/><video><model type='qxl' ram='65536' vram='65536' vgamem='16384' heads='1'/></video>
<memballoon model='virtio'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng></devices>
<seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+109</label></seclabel></domain>"""
EVIL = "/elsewhere/evil"


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    """An agent that lets VMs name the files in one folder."""
    folder = tmp_path / "boot"
    folder.mkdir()
    for name in ("code.fd", "vars.fd", "kernel"):
        (folder / name).write_bytes(b"x")
    (folder / "link").symlink_to("/etc/passwd")
    file = tmp_path / "agent.toml"
    file.write_text(f'[agent]\nname = "beta"\nreadable_dirs = ["{folder}"]\n')
    return load_agent(file)


def good(config: AgentConfig) -> str:
    return LIVE.replace("FOLDER", str(config.agent.readable_dirs[0]))


def fit(xml: str, config: AgentConfig, *targets: str) -> str:
    """The XML of the standby; RemusError where it is refused."""
    disks = [Disk(target, 1 << 20) for target in targets or ("vda",)]
    hello = Hello("1", "alpha", VmName("pg"), UUID, 0, False, 0, "pc-q35-10.0", xml, [], disks, 100, "10.0")
    made = fitted(hello, config).domain_xml
    images = {target: Path(f"/images/pg/{target}.raw") for target in targets or ("vda",)}
    nvram = Path("/images/pg/nvram.fd")
    standby = standby_xml(made, images, {}, qmp_socket(UUID), nvram)
    assert (EVIL in survivor_xml(made, images, {}, qmp_socket(UUID), nvram)) == (EVIL in standby)
    return standby


def refused(xml: str, config: AgentConfig, *targets: str) -> str:
    """Why it is refused."""
    with pytest.raises(CannotProtect) as caught:
        fit(xml, config, *targets)
    assert caught.value.hint
    return str(caught.value)


def test_an_honest_vm_is_started_on_this_hosts_files(config: AgentConfig) -> None:
    boot = str(config.agent.readable_dirs[0])
    text = fit(good(config), config)
    paths = set(re.findall(r"""[">](/[^"<]*)""", text))
    assert {path for path in paths if not path.startswith(boot)} == {
        "/images/pg/vda.raw", "/images/pg/nvram.fd", "/var/log/libvirt/pg-serial.log", "/dev/net/tun", "/dev/urandom",
        "/text",
    }  # fmt: skip
    root = ET.fromstring(text)
    assert [arg.get("value") for arg in root.iter(f"{{{QEMU_NS}}}arg")][:2] == ["-incoming", "defer"]
    assert root.find("./devices/interface/source").attrib == {"bridge": "br0"}  # type: ignore[union-attr]
    assert root.findtext("title") == "PG 16/17" and root.find("./cputune/vcpupin") is not None
    assert len(root.findall("./devices/disk")) == 2
    again = text.replace("<domain", "<domain id='9'", 1)  # protected back, from here
    assert fit(again, config)


def test_the_program_is_libvirts_own_or_the_one_that_the_agent_is_told(config: AgentConfig) -> None:
    assert ET.fromstring(fit(good(config), config)).find("./devices/emulator") is None
    own = msgspec.structs.replace(config.agent, emulator=Path("/opt/qemu"))
    told = fit(good(config), msgspec.structs.replace(config, agent=own))
    assert [one.text for one in ET.fromstring(told).iter("emulator")] == ["/opt/qemu"]


def test_a_prepared_vm_is_honest(config: AgentConfig) -> None:
    prepared, _ = prepare(good(config), UUID)
    assert "-mon" in fit(prepared, config)


DEVICES = {
    "a script that root runs": f"<interface type='ethernet'><script path='{EVIL}'/></interface>",
    "a script on a bridge": f"<interface type='bridge'><source bridge='br0'/><script path='{EVIL}'/></interface>",
    "a network filter": "<interface type='bridge'><source bridge='br0'/><filterref filter='x'/></interface>",
    "another domain's back end": "<interface type='bridge'><source bridge='br0'/><backenddomain name='x'/></interface>",
    "an interface on no bridge": "<interface type='network'><source network='default'/></interface>",
    "a bridge that is a path": "<interface type='bridge'><source bridge='../br0'/></interface>",
    "a tap that is a path": "<interface type='bridge'><source bridge='br0'/><target dev='a/b'/></interface>",
    "a disk of nobody's": f"<disk type='file' device='disk'><source file='{EVIL}'/><target dev='vdb'/></disk>",
    "the same disk twice": f"<disk type='file' device='disk'><source file='{EVIL}'/><target dev='vda'/></disk>",
    "a medium": f"<disk type='file' device='cdrom'><source file='{EVIL}'/><target dev='sdb'/></disk>",
    "a second source": f"<disk type='file' device='cdrom'><source/><source file='{EVIL}'/><target dev='sdb'/></disk>",
    "a host device": "<hostdev mode='subsystem' type='pci'><source><address domain='0'/></source></hostdev>",
    "a shared folder": f"<filesystem type='mount'><source dir='{EVIL}'/><target dir='x'/></filesystem>",
    "a serial port to the network": "<serial type='tcp'><source mode='connect' host='h' service='1'/></serial>",
    "a serial port to a socket": f"<serial type='unix'><source mode='bind' path='{EVIL}'/></serial>",
    "a serial port to a file": f"<serial type='file'><source path='{EVIL}'/></serial>",
    "a log": f"<serial type='pty'><log file='{EVIL}'/></serial>",
    "a channel to a socket": f"<channel type='unix'><source path='{EVIL}'/><target type='virtio' name='x'/></channel>",
    "a TPM": "<tpm model='tpm-tis'><backend type='external'><source type='unix' mode='connect'/></backend></tpm>",
    "numbers over a connection": "<rng model='virtio'><backend model='egd' type='tcp'/></rng>",
    "numbers from a file": f"<rng model='virtio'><backend model='random'>{EVIL}</backend></rng>",
    "shared memory": "<shmem name='x'/>",
    "a device of input": "<input type='evdev'><source dev='/dev/input/event0'/></input>",
    "an option ROM": f"<controller type='usb' index='1'><rom file='{EVIL}'/></controller>",
    "a keymap": f"<graphics type='vnc' keymap='{EVIL}'/>",
    "a display by name": "<graphics type='vnc' listen='evil.example'/>",
    "a display on a service's port": "<graphics type='vnc' port='5432' autoport='no'/>",
    "a display's other port": "<graphics type='vnc' port='5901' autoport='no' websocket='80'/>",
    "a display on the agent's port": "<graphics type='vnc' port='7473' autoport='no'/>",
    "an audio device": "<audio id='2' type='none'><input mixingEngine='no'/><output dev='/dev/dsp'/></audio>",
    "an alias": "<input type='tablet' bus='usb'><alias name='../x'/></input>",
    "too many queues": "<interface type='bridge'><source bridge='br0'/><driver queues='100000'/></interface>",
    "too many ptys": "<serial type='pty'/>" * 100,
    "too many devices": "<controller type='usb'/>" * 300,
    "too much of a display": "<video><model type='qxl' vram='999999999999'/></video>",
}  # fmt: skip
TOP = {
    "a word to QEMU": f"<q:commandline xmlns:q='{QEMU_NS}'><q:arg value='-D'/><q:arg value='{EVIL}'/></q:commandline>",
    "a harmless word": f"<q:commandline xmlns:q='{QEMU_NS}'><q:arg value='-global'/><q:arg value='a.b=c'/>"
    "</q:commandline>",
    "one word of three": f"<q:commandline xmlns:q='{QEMU_NS}'><q:arg value='-incoming'/><q:arg value='exec:{EVIL}'/>"
    "</q:commandline>",
    "an environment": f"<q:commandline xmlns:q='{QEMU_NS}'><q:env name='LD_PRELOAD' value='{EVIL}'/></q:commandline>",
    "a property": f"<q:override xmlns:q='{QEMU_NS}'><q:device alias='a'><q:frontend><q:property name='romfile' "
    "type='string' value='x'/></q:frontend></q:device></q:override>",
    "a file for the guest": f"<sysinfo type='fwcfg'><entry name='opt/x' file='{EVIL}'/></sysinfo>",
    "a time zone that is a file": f"<clock offset='timezone' timezone='{EVIL}'/>",
    "a time zone elsewhere": "<clock offset='timezone' timezone='Europe/../../x'/>",
    "real-time priority": "<cputune><vcpusched vcpus='0' scheduler='fifo' priority='99'/></cputune>",
    "real-time priority of QEMU": "<cputune><emulatorsched scheduler='rr' priority='99'/></cputune>",
    "two memories": "<memory unit='KiB'>1</memory>",
    "threads": "<iothreadids><iothread id='1' thread_pool_max='100000'/></iothreadids>",
    "more threads": f"<iothreadids>{'<iothread/>' * 100}</iothreadids>",
    "a size that is none": "<maxMemory slots='1' unit='KiB'>+99999999999</maxMemory>",
    "a unit that is none": "<maxMemory slots='1' unit='gib'>9</maxMemory>",
    "a stranger": "<brand-new/>",
}  # fmt: skip


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_that_could_harm_this_host_is_refused_or_made_harmless(config: AgentConfig, name: str) -> None:
    bad = good(config).replace("<audio", f"{DEVICES[name]}<audio", 1)
    if name == "a second source":
        assert EVIL not in fit(bad, config)
    else:
        refused(bad, config)


@pytest.mark.parametrize("name", TOP)
def test_a_setting_that_could_harm_this_host_is_refused(config: AgentConfig, name: str) -> None:
    live = good(config)
    tag = re.match(r"<([a-z:]+)", TOP[name])
    if tag is not None and tag[1] in ("clock", "cputune"):  # one of them is enough
        live = re.sub(rf"<{tag[1]}[ >].*?</{tag[1]}>", "", live, flags=re.DOTALL)
    refused(live.replace("<pm>", f"{TOP[name]}<pm>"), config)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/usr/bin/qemu-system-x86_64", EVIL),
        ("<label>+64055:+109</label>", "<label>root:root</label>"),
        ("type='dynamic' model='dac' relabel='yes'", "type='none' model='apparmor'"),
        ("<source file='/base'/>", f"<source file='{EVIL}'/>"),
        ("<partition>/machine</partition>", f"<partition>{EVIL}</partition>"),
        ("/var/lib/libvirt/images/pg.qcow2", EVIL),
        ("/var/lib/libvirt/qemu/nvram/pg_VARS.fd", EVIL),
        ("/var/log/libvirt/pg-serial.log", "/var/log/libvirt/qemu/other.log"),
    ],
)
def test_what_is_behind_the_devices_is_this_hosts_choice(config: AgentConfig, old: str, new: str) -> None:
    live = good(config)
    assert old in live
    text = fit(live.replace(old, new), config)
    assert new not in text and "seclabel" not in text and "emulator" not in text


@pytest.mark.parametrize(
    "path",
    [
        EVIL, "/etc/passwd", "relative", "BOOT/../../etc/passwd", "BOOT/link", "BOOT/none", "BOOT", "BOOT/",
        "BOOT//kernel", "BOOTELSE/kernel", "\nBOOT/kernel",
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["kernel", "code.fd", "vars.fd"])
def test_files_of_this_host_are_only_those_that_it_lets_vms_name(config: AgentConfig, path: str, place: str) -> None:
    boot = str(config.agent.readable_dirs[0])
    live = good(config)
    bad = live.replace(f"{boot}/{place}", path.replace("BOOT", boot))
    assert bad != live
    told = refused(bad, config)
    assert any(words in told for words in ("VMs may name there", "VMs may not name there", "is no file there"))


def test_the_vm_is_the_one_that_the_session_is_for(config: AgentConfig) -> None:
    assert "named '../pg'" in refused(good(config).replace("<name>pg<", "<name>../pg<"), config)
    assert "it was sent as" in refused(
        good(config).replace(f"<uuid>{UUID}", "<uuid>" + UUID.replace("2c", "3c")), config
    )
    assert "vdb" in refused(good(config), config, "vda", "vdb")
    with pytest.raises(RemusError, match="document type"):
        fit(f"<!DOCTYPE domain>{good(config)}", config)


def test_a_vm_is_not_called_like_a_rehearsal(config: AgentConfig) -> None:
    tree = ET.fromstring(good(config).replace("<name>pg<", "<name>pg-rehearsal<"))
    assert any("rehearsal" in problem.what for problem in judge(tree, look(tree, config), None))


@functools.cache
def places() -> list[tuple[tuple[str, ...], str | None]]:
    """Every element of libvirt's schema, and every attribute that takes more than words of a list."""
    found: list[tuple[tuple[str, ...], str | None]] = []
    for path, attributes in Schema().elements.items():
        if ANY not in path:
            found.append((path, None))
            found += [(path, name) for name, values in attributes.items() if not values or ANY in values]
    return found


def with_path(live: str, path: tuple[str, ...], attribute: str | None) -> ET.Element:
    """The VM with a foreign path in this place; in an element of its own where that is one of several."""
    root = element = ET.fromstring(live)
    for number, name in enumerate(path):
        tag = name.replace("qemu:", f"{{{QEMU_NS}}}")
        found = element.find(tag)
        if found is None or (number == 1 and path[0] == "devices"):
            found = ET.SubElement(element, tag)
            if tag == "disk":
                found.set("device", "cdrom")
                ET.SubElement(found, "target", {"dev": "sdz"})
            if tag == "interface":
                found.set("type", "bridge")
                ET.SubElement(found, "source", {"bridge": "br0"})
        element = found
    if attribute is None:
        element.text = EVIL
    else:
        element.set(attribute, EVIL)
    return root


@pytest.mark.slow
def test_a_path_in_any_place_of_libvirts_schema_is_refused_or_is_not_started(config: AgentConfig) -> None:
    """But for text that the guest alone reads, or an operator."""
    live, read = good(config), []
    here = look(ET.fromstring(live), config)
    assert len(places()) > 1500
    for path, attribute in places():
        tree = with_path(live, path, attribute)
        if judge(tree, here, ["vda"]):
            continue
        strip(tree)
        choose_emulator(tree, None)
        for line in tree.findall(COMMAND_LINE):  # made again
            tree.remove(line)
        if EVIL in ET.tostring(tree, encoding="unicode"):
            read.append("/".join(path) + (f"@{attribute}" if attribute else ""))
    told = {place for place in read if not place.startswith(("metadata", "sysinfo/"))}
    assert told == {
        "title", "description", "os/cmdline", "devices/disk/serial", "devices/disk/vendor", "devices/disk/product",
        "devices/graphics@passwd",
    }  # fmt: skip
    assert not any(place.endswith("@file") for place in read)


def test_memory_that_the_xml_makes_qemu_take_is_counted() -> None:
    def of(inside: str) -> int:
        return memory_bytes(ET.fromstring(f"<domain>{inside}</domain>"))

    assert of("<memory unit='GiB'>2</memory>") == 2 << 30
    cells = "<cpu><numa><cell memory='3' unit='GiB'/><cell memory='1048576'/></numa></cpu>"
    assert of(f"<memory unit='KiB'>1</memory>{cells}") == 4 << 30
    modules = "<devices><memory model='dimm'><target><size unit='GiB'>5</size></target></memory></devices>"
    assert of(f"<memory unit='GiB'>9</memory>{cells}{modules}") == 9 << 30
    assert of(f"<memory>1</memory>{cells}{modules}") == 9 << 30
    video = "<devices><video><model type='qxl' ram='65536' vram='65536' vgamem='16384'/></video></devices>"
    assert of(video) == 128 << 20
    assert of("<features><tcg><tb-cache unit='GiB'>1</tb-cache></tcg></features>") == 1 << 30


def test_a_hello_keeps_all_else(config: AgentConfig) -> None:
    hello = Hello("1", "alpha", VmName("pg"), UUID, 3, False, 0, "m", good(config), [], [Disk("vda", 9)], 100, "10.0")
    changed = fitted(hello, config)
    assert msgspec.structs.replace(changed, domain_xml=hello.domain_xml) == hello
