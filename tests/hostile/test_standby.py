# SPDX-License-Identifier: Apache-2.0
"""What a HELLO's XML makes libvirt and QEMU do on the backup: run the guest, no more. With a real libvirtd and QEMU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from remusdb.core.messages import Refuse, Welcome
from tests.hostile.rig import Rig, eventually
from tests.hostile.sayings import domain_xml, hello

RESTRICTED_MODE = 0o600
# On the command line of a QEMU: something of the host's beside the guest's own disks.
FORBIDDEN = (
    '"type":"user"', "vhost-user", "ivshmem", "vfio", "9p", "fsdev", "virtfs", '"nbd"', "usb-host", "/etc/",
    "/dev/null", "0.0.0.0", "exec:", "-daemonize", "-runas", "guest_errors", "isa-debugcon", "-debugcon", "tpm", "egd",
    "nvdimm",
)  # fmt: skip


def plain(vm: str, **xml: Any) -> dict[str, Any]:
    """A HELLO that a real QEMU can take: without a word on RAM blocks, which would have to be just QEMU's."""
    return hello(vm, "gamma", blocks=[], domain_xml=domain_xml(vm, kind="qemu", **xml))


def scripts(folder: Path) -> str:
    """A program that leaves a trace of who ran it."""
    folder.chmod(0o777)
    path = folder / "program.sh"
    path.write_text(f'#!/bin/sh\nid -u >> {folder}/ran\nexec /usr/bin/qemu-system-x86_64 "$@"\n')
    path.chmod(0o755)
    return str(path)


def secret(folder: Path) -> str:
    """A file that only root reads."""
    path = folder / "secret"
    path.write_bytes(b"secret" * 100_000)
    path.chmod(RESTRICTED_MODE)
    return str(path)


def disk_of(path: str, target: str = "vdb", more: str = "", driver: str = "raw") -> str:
    """A disk that is this file."""
    return (
        f"<disk type='file' device='disk'><driver name='qemu' type='{driver}'/><source file='{path}'/>"
        f"<target dev='{target}' bus='virtio'/>{more}</disk>"
    )


def hostile(rig: Rig) -> dict[str, dict[str, str]]:
    """Name: the XML, as `domain_xml` takes it."""
    folder = rig.elsewhere
    program, private = scripts(folder), secret(folder)
    made = f"{folder}/made"
    arguments = {
        "-D": made,
        "-d": "guest_errors",
        "-drive": f"file={private},if=none,id=x,format=raw",
        "-chardev": f"file,id=x,path={made}",
        "-netdev": f"tap,id=x,script={program}",
        "-fsdev": "local,id=x,path=/,security_model=none",
        "-virtfs": "local,path=/,mount_tag=x,security_model=none",
        "-pidfile": made,
        "-incoming": f"exec:{program}",
        "-monitor": f"unix:{made},server,nowait",
        "-qmp": "tcp:0.0.0.0:4444,server,nowait",
        "-object": f"memory-backend-file,id=x,size=1M,mem-path={made},share=on",
        "-trace": f"events={private},file={made}",
        "-readconfig": private,
        "-global": "isa-debugcon.iobase=0x402",
        "-debugcon": f"file:{made}",
        "-runas": "root",
        "-daemonize": "",
    }
    lines = {
        f"qemu:commandline {word}": {
            "top": f"<qemu:commandline><qemu:arg value='{word}'/><qemu:arg value='{value}'/></qemu:commandline>"
        }
        for word, value in arguments.items()
    }
    return {
        "emulator": {"emulator": program},
        "emulator above its folder": {"emulator": f"/usr/bin/../..{program}"},
        "script": {"more": f"<interface type='ethernet'><script path='{program}'/></interface>"},
        "downscript": {"more": f"<interface type='ethernet'><downscript path='{program}'/></interface>"},
        "script of a bridge": {
            "more": f"<interface type='bridge'><source bridge='lan0'/><script path='{program}'/></interface>"
        },
        "user network": {"more": "<interface type='user'/>"},
        "macvtap": {"more": "<interface type='direct'><source dev='eth0' mode='bridge'/></interface>"},
        "vhost-user": {
            "more": f"<interface type='vhostuser'><source type='unix' path='{made}' mode='server'/></interface>"
        },
        "another disk": {"more": disk_of(private)},
        "another disk, read only": {"more": disk_of(private, more="<readonly/>")},
        "a cdrom": {
            "more": f"<disk type='file' device='cdrom'><source file='{private}'/><target dev='sda' bus='sata'/>"
            "<readonly/></disk>"
        },
        "a floppy": {
            "more": f"<disk type='file' device='floppy'><source file='{private}'/><target dev='fda' bus='fdc'/></disk>"
        },
        "a block device": {
            "more": "<disk type='block' device='disk'><source dev='/dev/null'/><target dev='vdb' bus='virtio'/></disk>"
        },
        "a network disk": {
            "more": "<disk type='network' device='disk'><source protocol='nbd'><host name='127.0.0.1'/></source>"
            "<target dev='vdb' bus='virtio'/></disk>"
        },
        "two disks of one target": {"more": disk_of(private, "vda")},
        "a backing file": {
            "more": disk_of(
                private,
                more=f"<backingStore type='file'><format type='raw'/><source file='{private}'/></backingStore>",
                driver="qcow2",
            )
        },
        "serial to a file": {"more": f"<serial type='file'><source path='{made}'/></serial>"},
        "console to a file": {"more": f"<console type='file'><source path='{made}'/></console>"},
        "serial logged": {"more": f"<serial type='pty'><log file='{made}' append='on'/></serial>"},
        "serial on TCP": {"more": "<serial type='tcp'><source mode='bind' host='0.0.0.0' service='4445'/></serial>"},
        "serial on a device": {"more": "<serial type='dev'><source path='/dev/null'/></serial>"},
        "serial on a pipe": {"more": f"<serial type='pipe'><source path='{made}'/></serial>"},
        "a channel": {
            "more": f"<channel type='unix'><source mode='bind' path='{made}'/>"
            "<target type='virtio' name='x'/></channel>"
        },
        "a folder": {"more": "<filesystem type='mount'><source dir='/'/><target dir='x'/></filesystem>"},
        "virtiofsd": {
            "top": "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
            "more": f"<filesystem type='mount'><driver type='virtiofs'/><binary path='{program}'/><source dir='/'/>"
            "<target dir='x'/></filesystem>",
        },
        "a PCI device": {
            "more": "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='0' slot='1' function='0'/>"
            "</source></hostdev>"
        },
        "a USB device": {
            "more": "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/><product id='0x1'/></source>"
            "</hostdev>"
        },
        "rng of a file": {"more": f"<rng model='virtio'><backend model='random'>{private}</backend></rng>"},
        "rng of a socket": {
            "more": "<rng model='virtio'><backend model='egd' type='tcp'><source mode='connect' host='127.0.0.1' "
            "service='1'/></backend></rng>"
        },
        "shared memory": {"more": "<shmem name='x'><model type='ivshmem-plain'/><size unit='M'>1</size></shmem>"},
        "a TPM": {
            "more": "<tpm model='tpm-crb'><backend type='external'><source type='unix' mode='connect' "
            f"path='{made}'/></backend></tpm>"
        },
        "a passed-through TPM": {"more": "<tpm><backend type='passthrough'><device path='/dev/null'/></backend></tpm>"},
        "vnc on a socket": {"more": f"<graphics type='vnc' socket='{made}'/>"},
        "audio to a file": {"more": f"<audio id='1' type='file' path='{made}'/>"},
        "a smartcard": {
            "more": "<smartcard mode='host-certificates'><certificate>a</certificate><certificate>b</certificate>"
            "<certificate>c</certificate><database>/etc</database></smartcard>"
        },
        "NVDIMM": {
            "more": f"<memory model='nvdimm'><source><path>{made}</path></source><target><size unit='M'>1</size>"
            "</target></memory>"
        },
        "a memory folder": {"top": "<memoryBacking><source type='file'/></memoryBacking>"},
        "no confinement": {"top": "<seclabel type='none'/>"},
        "another user": {"top": "<seclabel type='static' model='dac' relabel='yes'><label>+0:+0</label></seclabel>"},
        "a partition": {"top": "<resource><partition>/../../x</partition></resource>"},
        "hardware database": {"top": "<sysinfo type='fwcfg'><entry name='opt/x' file='/etc/shadow'/></sysinfo>"},
        "huge memory": {"top": "<maxMemory slots='255' unit='TiB'>64</maxMemory>"},
        "metadata that is no harm, and a device that nobody knows": {"more": "<backdoor/>"},
        **lines,
    }


def test_a_plain_vm_is_taken(real: Rig) -> None:
    """That the others are refused is their own doing, not the rig's."""
    caller, answer = real.hello(plain("plain"), "gamma")
    assert isinstance(answer, Welcome), answer
    assert qemus(real)
    caller.say_bye(answer.term)
    eventually(lambda: not qemus(real), "the standby stays")


def qemus(rig: Rig) -> list[str]:
    """The command lines of the QEMU processes in this network namespace."""
    mine, found = os.stat("/proc/thread-self/ns/net").st_ino, []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_text().split("\0") if entry.name.isdigit() else [""]
            if "-incoming" in words and os.stat(entry / "ns/net").st_ino == mine:
                found.append(" ".join(words))
        except OSError:
            continue
    return found


def harm(rig: Rig) -> list[str]:
    """What is wrong with the standby that runs now."""
    lines = qemus(rig)
    words = [word for word in (*FORBIDDEN, str(rig.elsewhere)) for line in lines if word in line]
    return words if lines else ["no QEMU"]


def test_an_xml_starts_nothing_else(real: Rig) -> None:
    """Each is refused, or what is hostile about it is left out; and nothing of it is left when it ends."""
    wrong, cases = {}, hostile(real)
    kept = Path(real.elsewhere / "secret").stat()
    with real.unchanged(files=False):
        for name, xml in cases.items():
            caller, answer = real.hello(plain("hostile", **xml), "gamma")
            if isinstance(answer, Welcome):
                if found := harm(real):
                    wrong[name] = f"welcomed: {found}"
                caller.say_bye(answer.term)
            elif not isinstance(answer, Refuse) or answer.code != "preflight" or answer.fenced or answer.renounced:
                wrong[name] = f"{answer!r:.200}"
            caller.close()
            if (real.elsewhere / "ran").exists() or (real.elsewhere / "made").exists():
                wrong[name] = "it did it"
                (real.elsewhere / "ran").unlink(missing_ok=True)
                (real.elsewhere / "made").unlink(missing_ok=True)
        eventually(lambda: not qemus(real), "a QEMU stays")
        assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())
    now = Path(real.elsewhere / "secret").stat()
    assert (now.st_uid, now.st_gid, now.st_mode) == (kept.st_uid, kept.st_gid, kept.st_mode)
    assert not list(real.images.rglob("*")), "files are left"
