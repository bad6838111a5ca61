# SPDX-License-Identifier: Apache-2.0
"""VMs as they are: each fragment of `cases/` and its kin, in a VM that is good otherwise, taken or refused by name."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from remusdb.allow.judge import judge
from remusdb.vm.prepare import QEMU_NS, prepare

CASES = Path(__file__).parent / "cases"
XML = """<domain type='kvm' id='3'><name>db1</name><memory unit='KiB'>1048576</memory>
<os><type arch='x86_64' machine='pc-q35-8.2'>hvm</type></os><cpu mode='custom'/><on_crash>destroy</on_crash>
<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/d.qcow2'/>
<target dev='vda' bus='virtio'/></disk><interface type='bridge'><mac address='52:54:00:00:00:01'/>
<source bridge='br0'/><target dev='vnet3'/><model type='virtio'/></interface></devices></domain>"""
TOP = ("genid", "sysinfo", "commandline", "memoryBacking", "seclabel", "override", "capabilities", "deprecation")


def told(fragment: str, xml: str = XML) -> list[str]:
    """What is wrong with the VM once it has the fragment: what and hint of each problem."""
    tree = ET.fromstring(xml)
    part = ET.fromstring(fragment)
    parent = tree if part.tag.rpartition("}")[2] in TOP else tree.find("devices")
    assert parent is not None
    parent.append(part)
    return [f"{problem.area}: {problem.what} | {problem.hint}" for problem in judge(tree)]


def case(name: str) -> str:
    return (CASES / f"{name}.xml").read_text()


def qemu(*words: str, rest: str = "", prefix: str = "qemu") -> str:
    arguments = "".join(f"<{prefix}:arg value='{word}'/>" for word in words)
    return f"<{prefix}:commandline xmlns:{prefix}='{QEMU_NS}'>{arguments}{rest}</{prefix}:commandline>"


def override(prop: str) -> str:
    device = f"<q:device alias='net0'><q:frontend>{prop}</q:frontend></q:device>"
    return f"<q:override xmlns:q='{QEMU_NS}'>{device}</q:override>"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("commandline-nic", ["-netdev user,id=mgmt", "-device virtio-net-pci,netdev=mgmt"]),
        ("commandline-drive", ["-drive file=/srv/data.qcow2,if=virtio"]),
        ("commandline-vhost-user", ["-chardev socket,id=c0,path=/run/vhu0", "-netdev vhost-user,id=n0,chardev=c0"]),
        ("channel-tcp", ["channel db.export", "tcp"]),
        ("smartcard-host", ["smartcard", "mode host"]),
    ],
)
def test_a_case_that_is_refused_by_name(name: str, words: list[str]) -> None:
    found = told(case(name))
    assert found
    for word in words:
        assert any(word in text for text in found), (word, found)


@pytest.mark.parametrize("name", ["cd-ejected", "floppy-empty", "fwcfg-file", "genid", "metadata-cache", "volume"])
def test_a_case_that_is_taken(name: str) -> None:
    assert told(case(name)) == []


@pytest.mark.parametrize(
    "words",
    [
        ("--netdev", "user,id=n"), ("-nic", "user"), ("-net", "nic"), ("--device", "e1000,netdev=n"), ("-hda", "/d"),
        ("-blockdev", "driver=file,filename=/d,node-name=x"), ("-fsdev", "local,id=f,path=/srv"), ("-virtfs", "x"),
        ("-object", "memory-backend-file,id=m,mem-path=/x,size=1M,share=on"), ("-serial", "tcp::4444,server"),
        ("-chardev", "socket,id=c,host=0.0.0.0,port=9,server=on"), ("-monitor", "tcp::1"), ("-qmp", "unix:/q,server"),
        ("-D", "/tmp/log"), ("-set", "drive.x.file=/d"), ("-readconfig", "/c"), ("-incoming", "tcp:0:4444"),
        ("-vnc", ":1"), ("-spice", "port=1"), ("-gdb", "tcp::1234"), ("-s",), ("-cdrom", "/d.iso"), ("/srv/disk.img",),
        ("-add-fd", "fd=3,set=1"), ("-mem-path", "/dev/shm"), ("-fw_cfg", "name=opt/x,file=/etc/shadow"),
        ("-smbios", "type=11,path=/etc/shadow"), ("-smbios", "file=/x"), ("-global", "migration.multifd=on"),
        ("-global", "vfio-pci.sysfsdev=/sys/x"), ("-global", "driver=x,property=romfile,value=/x"),
        ("-plugin", "/x.so"),
        ("-trace", "file=/x"), ("-tpmdev", "emulator,id=t,chardev=c"), ("-usbdevice", "braille"), ("-cpu", "/x"),
        ("-chardev", "socket,id=remusdb-qmp,path=/x,server=on,wait=off,host=0"), ("-fw_cfg", "opt/x,string=a,file=/b"),
        ("-mon", "chardev=remusdb-qmp,mode=readline"), ("-msg", "timestamp=on", "-netdev"), ("-no-such-thing",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_word_that_qemu_is_told_past_libvirt_is_refused_by_name(words: tuple[str, ...]) -> None:
    [text] = told(qemu(*words))
    last = words[2:] or words
    assert text.startswith(f"command line: {' '.join(last)}: ") and "virsh edit db1: remove" in text


def test_the_words_are_what_they_are_under_any_prefix() -> None:
    assert "-nic user" in told(qemu("-nic", "user", prefix="q"))[0]


def test_several_words_are_each_named_and_harmless_ones_are_not() -> None:
    found = told(
        qemu("-msg", "timestamp=on", "-netdev", "user,id=n", "--device", "e1000", "-global", "kvm-pit.x=delay")
    )
    assert [text.partition(": not")[0] for text in found] == [
        "command line: -netdev user,id=n", "command line: --device e1000"
    ]  # fmt: skip


def test_remusdbs_own_words_are_taken() -> None:
    uuid = "2c1f1d0e-6d8f-4c7a-9b63-0f5b6a1f9e11"
    prepared, _ = prepare(XML, uuid)
    for path in (
        f"remusdb-{uuid}",
        "remusdb-db1",
        "remusdb-a,,b",
        "remusdb-x &amp; y",
    ):  # the latter: of older versions
        assert judge(ET.fromstring(prepared.replace(f"remusdb-{uuid}", path))) == []
    assert told(qemu("-incoming", "defer")) == []


@pytest.mark.parametrize(
    "words",
    [
        ("-global", "ICH9-LPC.disable_s3=1"), ("--global", "kvm-pit.lost_tick_policy=delay"), ("-cpu", "host,-svm"),
        ("-fw_cfg", "name=opt/x,string=a b"), ("-smbios", "type=1,serial=abc,product=a=b"), ("-msg", "timestamp=on"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_word_that_can_make_no_backend_is_taken(words: tuple[str, ...]) -> None:
    assert told(qemu(*words)) == []


@pytest.mark.parametrize(
    ("fragment", "word"),
    [
        (qemu(rest="<qemu:env name='LD_PRELOAD' value='/x.so'/>"), "qemu:env LD_PRELOAD"),
        (f"<q:capabilities xmlns:q='{QEMU_NS}'><q:del capability='x'/></q:capabilities>", "qemu:capabilities"),
        (f"<q:deprecation xmlns:q='{QEMU_NS}' behavior='crash'/>", "behavior='crash'"),
        (
            override("<q:property name='romfile' type='string' value='/x'/>"),
            "romfile to /x",
        ),
        ("<commandline xmlns='http://libvirt.org/schemas/domain/lxc/1.0'/>", "lxc/1.0}commandline"),
        ("<commandline xmlns='http://libvirt.org/schemas/domain/xen/1.0'/>", "xen/1.0}commandline"),
    ],
)
def test_other_words_past_libvirt(fragment: str, word: str) -> None:
    [text] = told(fragment)
    assert word in text


def test_a_property_that_is_no_path_may_be_overridden() -> None:
    prop = "<q:property name='share-rw' type='bool' value='true'/>"
    line = (
        f"<q:override xmlns:q='{QEMU_NS}'><q:device alias='d'><q:frontend>{prop}</q:frontend></q:device></q:override>"
    )
    assert told(line) == []


TARGET = "type='virtio' name='x'"
OUT = ("spiceport", "tcp", "udp", "unix", "pipe", "dev", "nmdm", "dbus", "qemu-vdagent", "something-new")


@pytest.mark.parametrize("tag", ["serial", "parallel", "console", "channel"])
@pytest.mark.parametrize("kind", OUT)
def test_what_a_guest_writes_may_not_go_out(tag: str, kind: str) -> None:
    source = "<source mode='connect' host='10.0.0.9' service='514' path='/x'/><protocol type='raw'/>"
    found = told(f"<{tag} type='{kind}'>{source}<target type='virtio' name='x' port='1'/></{tag}>")
    assert len(found) == 1 and found[0].startswith("devices: ") and "virsh edit db1" in found[0]


@pytest.mark.parametrize("tag", ["serial", "parallel", "console", "channel"])
@pytest.mark.parametrize("kind", ["pty", "null", "vc", "stdio", "spicevmc"])
def test_what_nobody_hears_is_taken(tag: str, kind: str) -> None:
    source = "<source path='/dev/pts/3'/>" if kind == "pty" else ""
    kinds = {"serial": "type='isa-serial' port='0'", "console": "type='virtio' port='1'", "parallel": "port='0'"}
    target = f"<target {kinds.get(tag, TARGET)}/><alias name='a'/><address type='virtio-serial' bus='0'/>"
    assert told(f"<{tag} type='{kind}'>{source}{target}</{tag}>") == []


@pytest.mark.parametrize(
    ("path", "fine"),
    [
        ("/var/log/libvirt/db1.log", True), ("/var/log/libvirt/qemu/db1-serial.log", True), ("/dev/ttyS0", False),
        ("/srv/share/db1.log", False), ("/var/log/libvirt/../../../dev/ttyS0", False), ("/var/log/libvirt-x/a", False),
    ],
)  # fmt: skip
def test_what_a_guest_prints_may_go_to_a_log_of_libvirts(path: str, fine: bool) -> None:
    assert (told(f"<serial type='file'><source path='{path}' append='on'/></serial>") == []) is fine
    assert (told(f"<serial type='pty'><log file='{path}' append='off'/></serial>") == []) is fine
    assert (told(f"<redirdev bus='usb' type='spicevmc'><log file='{path}'/></redirdev>") == []) is fine


AGENT = "<target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>"


@pytest.mark.parametrize(
    ("source", "target", "fine"),
    [
        ("", AGENT, True),
        ("<source mode='bind' path='/run/libvirt/qemu/channel/3-db1/org.qemu.guest_agent.0'/>", AGENT, True),
        ("<source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-3-db1/org.qemu.guest_agent.0'/>",
         AGENT, True),
        ("<source mode='bind' path='/var/lib/libvirt/qemu/channel/target/db1.org.qemu.guest_agent.0'/>", AGENT, True),
        ("<source mode='bind' path='/run/libvirt/qemu/channel/../org.qemu.guest_agent.0'/>", AGENT, False),
        ("<source mode='connect' path='/run/libvirt/qemu/channel/3-db1/org.qemu.guest_agent.0'/>", AGENT, False),
        ("<source mode='bind' path='/tmp/agent'/>", AGENT, False),
        ("<source mode='bind' path='/run/libvirt/qemu/channel/../x/org.qemu.guest_agent.0'/>", AGENT, False),
        ("", "<target type='virtio' name='com.example.export'/>", False),
        ("", "<target type='guestfwd' address='10.0.2.1' port='4600'/>", False),
    ],
)  # fmt: skip
def test_a_channel_on_a_socket_is_the_guest_agents_or_refused(source: str, target: str, fine: bool) -> None:
    assert (told(f"<channel type='unix'>{source}{target}</channel>") == []) is fine


@pytest.mark.parametrize(
    ("fragment", "word"),
    [
        ("<redirdev bus='usb' type='tcp'><source mode='connect' host='h' service='4000'/></redirdev>", "redirdev"),
        ("<redirdev bus='usb' type='unix'><source mode='bind' path='/x'/></redirdev>", "redirdev"),
        ("<smartcard mode='host-certificates'><certificate>c</certificate></smartcard>", "host-certificates"),
        ("<smartcard mode='passthrough' type='tcp'><source mode='bind' host='h' service='1'/></smartcard>", "tcp"),
        ("<rng model='virtio'><backend model='egd' type='tcp'><source host='h' service='1'/></backend></rng>", "egd"),
        ("<rng model='virtio'><backend model='random'>/srv/numbers</backend></rng>", "/srv/numbers"),
        ("<pstore backend='acpi-erst'><path>/x</path></pstore>", "pstore"),
        ("<crypto model='virtio' type='qemu'><backend model='builtin'/></crypto>", "crypto"),
        ("<vsock model='virtio'><cid auto='yes'/></vsock>", "vsock"),
        ("<lease><lockspace>s</lockspace><key>k</key><target path='/x'/></lease>", "lease"),
        ("<audio id='1' type='pulseaudio'/>", "type='pulseaudio' of <audio>"),
        ("<audio id='1' type='file' path='/x.wav'/>", "type='file' of <audio>"),
        ("<graphics type='dbus'/>", "type='dbus' of <graphics>"),
        ("<graphics type='rdp'/>", "type='rdp' of <graphics>"),
        ("<graphics type='egl-headless'/>", "egl-headless"),
        ("<graphics type='spice'><gl enable='yes' rendernode='/dev/dri/x'/></graphics>", "enable='yes' of <gl>"),
        ("<input type='evdev'><source dev='/dev/input/event1'/></input>", "type='evdev' of <input>"),
        ("<input type='passthrough' bus='virtio'><source evdev='/x'/></input>", "type='passthrough' of <input>"),
        ("<sound model='virtio'/>", "model='virtio' of <sound>"),
        ("<sound model='usb'/>", "model='usb' of <sound>"),
        ("<watchdog model='itco' action='dump'/>", "action='dump' of <watchdog>"),
        ("<serial type='pty'><target type='usb-serial' port='0'/></serial>", "type='usb-serial' of <target>"),
        ("<interface type='bridge'><source bridge='b'/><model type='usb-net'/></interface>", "type='usb-net'"),
        ("<controller type='nvme' index='0'/>", "type='nvme' of <controller>"),
        ("<controller type='xenbus'/>", "type='xenbus' of <controller>"),
        ("<iommu model='amd'/>", "model='amd' of <iommu>"),
        ("<panic model='s390'/>", "model='s390' of <panic>"),
        ("<memory model='virtio-pmem'><source><path>/x</path></source></memory>", "virtio-pmem"),
        ("<memory model='sgx-epc'/>", "sgx-epc"),
        ("<video><model type='virtio' blob='on'/></video>", "blob='on' of <model>"),
        ("<video><driver name='vhostuser'/></video>", "vhost-user video"),
        ("<nvram><address type='spapr-vio'/></nvram>", "<nvram>"),
        ("<loudspeaker/>", "<loudspeaker>"),
        ("<serial type='pty'><source path='/dev/pts/1' tee='/x'/></serial>", "tee='/x' of <source>"),
        ("<serial type='pty'><forward to='x'/></serial>", "<forward> in <serial>"),
        ("<interface type='bridge'><source bridge='b'/><script path='/x'/></interface>", "<script>"),
        ("<interface type='bridge'><source bridge='b'/><backend type='passt' logFile='/x'/></interface>", "passt"),
        ("<interface type='bridge'><source bridge='b'/><backend tap='/dev/x'/></interface>", "tap='/dev/x'"),
        ("<interface type='network'><source network='n'/><teaming type='persistent'/></interface>", "<teaming>"),
        ("<interface type='bridge'><source bridge='b'/><virtualport type='midonet'/></interface>", "midonet"),
        *((f"<interface type='{kind}'/>", kind) for kind in
          ("user", "passt", "mcast", "server", "client", "udp", "direct", "ethernet", "internal", "vds", "null")),
    ],
)  # fmt: skip
def test_a_device_that_is_refused_by_name(fragment: str, word: str) -> None:
    text = told(fragment)[0]
    assert word in text and "virsh edit db1: " in text and "from the VM's next start" in text


@pytest.mark.parametrize(
    "fragment",
    [
        "<redirdev bus='usb' type='spicevmc'><alias name='r'/><address type='usb' bus='0' port='2'/></redirdev>",
        "<redirfilter><usbdev class='0x08' allow='no'/></redirfilter>",
        "<smartcard mode='passthrough' type='spicevmc'><address type='ccid' controller='0' slot='0'/></smartcard>",
        "<rng model='virtio'><backend model='random'>/dev/urandom</backend><rate bytes='1' period='1'/></rng>",
        "<rng model='virtio'><backend model='builtin'/></rng>",
        "<audio id='1' type='none'/>",
        "<audio id='1' type='spice'/>",
        "<graphics type='vnc' port='5900' autoport='yes'><listen type='address' address='0.0.0.0'/></graphics>",
        "<graphics type='spice' autoport='yes'><listen type='none'/><image compression='off'/></graphics>",
        "<input type='tablet' bus='usb'><address type='usb' bus='0' port='1'/></input>",
        "<sound model='ich9'><codec type='duplex'/></sound>",
        "<watchdog model='itco' action='reset'/>",
        ("<controller type='pci' index='1' model='pcie-root-port'><model name='pcie-root-port'/><target chassis='1'/>"
        "<alias name='pci.1'/><address type='pci' slot='0x02' multifunction='on'/></controller>"),
        "<panic model='pvpanic'/>",
        "<hub type='usb'/>",
        "<iommu model='intel'><driver intremap='on' iotlb='on'/></iommu>",
        "<memory model='dimm'><target><size unit='MiB'>512</size><node>0</node></target></memory>",
        "<memballoon model='virtio' freePageReporting='on'><stats period='10'/></memballoon>",
        "<video><model type='qxl' ram='65536' vram='65536' vgamem='16384' heads='1' primary='yes'/></video>",
        ("<interface type='network'><mac address='52:54:00:00:00:02'/><source network='n' portid='x' bridge='v'/>"
        "<target dev='vnet4'/><model type='virtio'/><vlan><tag id='4'/></vlan><mtu size='9000'/><port isolated='yes'/>"
        "<driver name='vhost' queues='4'><host csum='off'/></driver><link state='up'/></interface>"),
        "<seclabel type='dynamic' model='dac' relabel='yes'><label>+1:+1</label></seclabel>",
        "<memoryBacking><source type='file'/></memoryBacking>",
        "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>",
        "<memoryBacking><access mode='shared'/></memoryBacking>",
        "<memoryBacking><source type='memfd'/><locked/><nosharepages/><allocation mode='immediate'/></memoryBacking>",
        "<memoryBacking><hugepages><page size='2' unit='MiB'/></hugepages></memoryBacking>",
        "<memoryBacking><hugepages><page size='2048' unit='KiB' nodeset='0'/></hugepages></memoryBacking>",
        "<memoryBacking><hugepages/></memoryBacking>",
        ("<disk type='block' device='disk'><driver name='qemu' type='raw' cache='none' io='native'/>"
        "<source dev='/dev/vg/db' index='1'/><backingStore/><target dev='vdb' bus='virtio'/><serial>s</serial></disk>"),
        ("<disk type='volume' device='disk'><driver name='qemu' type='raw'/><source pool='p' volume='v' mode='host'/>"
        "<target dev='sdb' bus='scsi'/><iotune><total_iops_sec>9</total_iops_sec></iotune></disk>"),
        ("<disk type='file' device='disk'><source file='/d'/><backingStore type='file'><format type='qcow2'/><source "
        "file='/base'/><backingStore/></backingStore><target dev='vdb' bus='virtio'/></disk>"),
        "<disk type='file' device='cdrom'><source startupPolicy='optional'/><target dev='sdb' tray='open'/></disk>",
        "<disk type='block' device='cdrom'><target dev='sdb' bus='sata'/><readonly/></disk>",
    ],
)  # fmt: skip
def test_a_part_that_is_taken(fragment: str) -> None:
    assert told(fragment) == []


@pytest.mark.parametrize(
    "size", ["size='1' unit='GiB'", "size='1048576' unit='KiB'", "size='1048576'", "size='1' unit='G'"]
)
def test_pages_of_1_gib_are_refused(size: str) -> None:
    [text] = told(f"<memoryBacking><hugepages><page size='2' unit='M'/><page {size}/></hugepages></memoryBacking>")
    assert text.startswith("guest memory: huge pages of 1024 MiB") and "size='2' unit='MiB'" in text


MACHINES = [
    ("pc-q35-noble", True), ("pc-i440fx-jammy", True), ("pc-q35-4.0.1", True), ("pc-i440fx-rhel7.6.0", True),
    ("pc-q35-9.0+pve1", True), ("pc-1.2", True), ("rhel6.6.0", True), ("pc-q35-noble-v2", True), ("pc", False),
    ("q35", False), ("ubuntu", False), ("ubuntu-q35", False), ("virt", False), ("microvm", False), ("isapc", False),
    ("none", False), ("", False),
]  # fmt: skip


@pytest.mark.parametrize(("machine", "fine"), MACHINES)
def test_a_machine_type_is_real_or_an_alias(machine: str, fine: bool) -> None:
    assert (judge(ET.fromstring(XML.replace("pc-q35-8.2", machine))) == []) is fine


@pytest.mark.parametrize("target", ["vd_foo", "vdA", "vd", "vda.raw", "../vda"])
def test_a_disk_has_a_name_that_both_hosts_can_use(target: str) -> None:
    """libvirt takes some of these where the disk has an address, too."""
    disk = f"""<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/e.raw'/>
<target dev='{target}' bus='virtio'/></disk>"""
    (problem,) = told(disk)
    assert f"disks: {target} is no name" in problem and "virsh edit db1" in problem
    assert told(disk.replace(target, "sdb1")) == []
