# SPDX-License-Identifier: Apache-2.0
"""Which accelerator a VM can have here. KVM that opens is not yet KVM that boots Linux: nested, it may hang."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from pathlib import Path

from tools.lab.image import Image
from tools.lab.paths import CACHE

_PROBE_S = 8.0  # a KVM that works needs about a second


def bare_metal() -> str:
    """`kvm` where /dev/kvm can be opened, else `qemu` (that is TCG): libvirt's domain types."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return "qemu"
    return "kvm"


def linux(image: Image) -> str:
    """The type of domain that boots a stock Linux: `kvm` if its kernel is seen to start under it, else `qemu`.

    The answer is kept for this boot of the machine; the environment's ACCEL=kvm or ACCEL=qemu overrides it.
    """
    if forced := os.environ.get("ACCEL"):
        if forced not in ("kvm", "qemu"):
            raise ValueError(f"ACCEL={forced}: kvm or qemu")
        return forced
    if bare_metal() != "kvm":
        return "qemu"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kept = CACHE / "accel"
    question = f"{boot} {platform.release()} {image.kernel}"
    if kept.exists() and kept.read_text().startswith(question):
        return kept.read_text().split()[-1]
    answer = "kvm" if _starts_under_kvm(image) else "qemu"
    kept.write_text(f"{question} {answer}\n")
    return answer


def qemu_word(image: Image) -> str:
    """As `linux`, in QEMU's words: `kvm` or `tcg`."""
    return "kvm" if linux(image) == "kvm" else "tcg"


def _starts_under_kvm(image: Image) -> bool:
    """Starts the kernel alone and sees whether it comes through its set-up to the search for a root disk."""
    with tempfile.TemporaryDirectory() as work:
        serial = Path(work, "serial")
        qemu = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-M", "q35,accel=kvm", "-cpu", "Nehalem", "-m", "256", "-nodefaults"),
                *("-display", "none", "-no-reboot", "-serial", f"file:{serial}", "-kernel", str(image.kernel)),
                *("-append", "console=ttyS0 panic=-1"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            # With no disk the kernel's last words are a panic, after which QEMU ends.
            qemu.wait(_PROBE_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            qemu.kill()
            qemu.wait()
        return serial.exists() and b"Kernel panic" in serial.read_bytes()
