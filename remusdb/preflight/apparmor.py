# SPDX-License-Identifier: Apache-2.0
"""Whether AppArmor confines QEMU on this host, and whether it lets it do what remusdb needs.

libvirt generates a profile a VM, which includes the snippets of administrators: only these are looked at.
"""

from __future__ import annotations

import re
from pathlib import Path

from remusdb.core.probe import Confinement

SNIPPETS = Path("/etc/apparmor.d/abstractions/libvirt-qemu.d")
LOCAL = Path("/etc/apparmor.d/local/abstractions/libvirt-qemu")  # of libvirt before 8
CHANNEL_RULE = "/run/remusdb/** rw,"
MONITOR_RULE = "owner /var/lib/libvirt/qemu/remusdb-*.sock rw,"

_CHANNEL = re.compile(r"^\s*(?:owner\s+)?(?:/run|/\{,var/\}run|@\{run\})/remusdb/\S*\s+\w*r\w*w\w*,", re.MULTILINE)
_MONITOR = re.compile(r"^\s*(?:owner\s+)?/var/lib/libvirt/qemu/(?:remusdb-)?\*+\S*\s+\w*r\w*w\w*,", re.MULTILINE)


def look(capabilities: str, snippets: Path = SNIPPETS, local: Path = LOCAL) -> Confinement:
    """`capabilities` are libvirt's, of this host."""
    if "<model>apparmor</model>" not in capabilities:
        return Confinement(confined=False)
    rules = "\n".join(_text(path) for path in (*sorted(snippets.glob("*")), local))
    return Confinement(True, _CHANNEL.search(rules) is not None, _MONITOR.search(rules) is not None)


def hint(*rules: str) -> str:
    """What to do for these rules. A VM gets its profile when it starts, and again when it is changed."""
    lines = " and ".join(f"`{rule}`" for rule in rules)
    return f"put {lines} into {SNIPPETS}/remusdb; it holds for each VM from its next start"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
