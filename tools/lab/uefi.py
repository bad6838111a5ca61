# SPDX-License-Identifier: Apache-2.0
"""A UEFI guest: the firmware itself, whose shell runs a script that writes one variable after the other.

It runs in emulation: the nested KVM of some machines does not get through the firmware. Needs OVMF and mtools.
"""

from __future__ import annotations

import subprocess
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from tools.lab import domains
from tools.lab.guest import Mode
from tools.lab.host import Host

CODE, VARIABLES = "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"
GUID = "5e5d2c1a-7f0b-4b3a-9f57-1c6a0d6b7e11"
# Each round the variable `round` is the round's number. What it was when the guest was booted is shown first.
SCRIPT = f"""\
@echo -off
setvar round -guid {GUID}
for %i run (1 100000)
  setvar round -guid {GUID} -bs -rt -nv =L"%i"
  echo round %i done
endfor
"""


def define(host: Host, name: str = "uefi") -> domains.Vm:
    """Defines it, with fresh variables made from Debian's template at its first start."""
    vm = domains.define_bare(host, Mode.DIRTIER, name=name, kind="qemu")
    _write_script(host.path(vm.disk))
    host.path("/var/lib/libvirt/qemu/nvram").mkdir(parents=True, exist_ok=True)

    def edit(root: ET.Element) -> None:
        os, disk = root.find("os"), root.find("./devices/disk")
        assert os is not None and disk is not None
        for tag in ("loader", "kernel", "boot"):
            for child in os.findall(tag):
                os.remove(child)
        ET.SubElement(os, "loader", {"readonly": "yes", "type": "pflash"}).text = CODE
        ET.SubElement(os, "nvram", {"template": VARIABLES}).text = str(variables(name))
        ET.SubElement(disk, "boot", {"order": "1"})  # or the firmware tries the network first, for a minute

    domains.change(host, name, edit)
    return vm


def variables(name: str) -> Path:
    """Where the host that defined the VM has its variables."""
    return Path(f"/var/lib/libvirt/qemu/nvram/{name}_VARS.fd")


def _write_script(disk: Path) -> None:
    """A FAT file system with the script that the shell looks for."""
    with tempfile.NamedTemporaryFile("w") as script:
        script.write(SCRIPT)
        script.flush()
        sectors = disk.stat().st_size // 512
        subprocess.run(["mformat", "-i", disk, "-T", str(sectors), "::"], check=True, timeout=30)
        subprocess.run(["mcopy", "-i", disk, script.name, "::startup.nsh"], check=True, timeout=30)
