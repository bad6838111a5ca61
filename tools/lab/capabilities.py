# SPDX-License-Identifier: Apache-2.0
"""What libvirt found out about QEMU, kept between labs.

A libvirtd with an empty cache starts each QEMU binary several times to ask what it can do: 8 s on two cores.
libvirtd checks an entry's age against QEMU, itself and the kernel, and asks again where it does not fit, so a stale
entry costs time and nothing else.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from tools.lab.paths import CACHE

_KEPT = CACHE / "libvirt-capabilities"


def lend(to: Path) -> None:
    """Copies what is known to a host's capabilities folder, before its libvirtd starts."""
    to.mkdir(parents=True, exist_ok=True)
    for entry in _KEPT.glob("*.xml"):
        shutil.copy2(entry, to)


def keep(found: Path) -> None:
    """Keeps what a host's libvirtd has found out."""
    _KEPT.mkdir(parents=True, exist_ok=True)
    for entry in found.glob("*.xml"):
        kept = _KEPT / entry.name
        if kept.exists() and kept.read_bytes() == entry.read_bytes():
            continue
        with tempfile.NamedTemporaryFile(dir=_KEPT, suffix=".new", delete=False) as copy:
            copy.write(entry.read_bytes())
        os.replace(copy.name, kept)  # another lab may be reading
