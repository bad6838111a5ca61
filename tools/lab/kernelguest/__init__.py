# SPDX-License-Identifier: Apache-2.0
"""A guest that runs this machine's own programs and this checkout under Debian's kernel, for what ours has not got.

python -m tools.lab.kernelguest 'COMMAND'     runs it there, and prints what it says

The guest's root is this machine's `/`, read-only through 9p, so nothing is installed for it but a kernel: the newest
generic one that apt offers for this release (the cloud kernels have no 9p). It is emulated where KVM cannot boot Linux.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.lab.kernelguest.boot import Boot, boot_files
from tools.lab.paths import REPO

MEMORY_MIB = 3072


@dataclass(frozen=True)
class Said:
    """What a guest printed, and how its job ended; `code` is None when it did not end by itself."""

    text: str
    code: int | None


def run(command: str, timeout_s: float, work: Path) -> Said:
    """Run a shell command in the repository's folder there. `work`: a folder for the initial file system and the log.

    It is cut off after `timeout_s`; nothing of it is left then.
    """
    boot: Boot = boot_files(command, work)
    serial = work / "serial"
    qemu = [
        *("qemu-system-x86_64", "-M", "q35", "-cpu", "Nehalem", "-accel", "tcg,thread=multi", "-smp", "2"),
        *("-m", str(MEMORY_MIB), "-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{serial}"),
        *("-kernel", str(boot.kernel), "-initrd", str(boot.initrd)),
        *("-append", "console=ttyS0 quiet mitigations=off rcupdate.rcu_expedited=1 panic=-1"),
        *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host", "-device", "virtio-rng-pci"),
    ]
    try:
        subprocess.run(qemu, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, cwd=REPO)
    except subprocess.TimeoutExpired:
        pass  # its last words tell how far it came
    except subprocess.CalledProcessError as exc:
        raise RuntimeError(f"the guest did not start: {exc.stderr.decode(errors='replace')}") from exc
    text = serial.read_text(errors="replace").replace("\r", "")
    _, found, code = text.partition("GUEST: the job ended with ")
    return Said(text, int(code.split()[0]) if found else None)
