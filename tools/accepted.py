# SPDX-License-Identifier: Apache-2.0
"""Writes docs/accepted.md: what a VM may have to be protected, from the very table that decides it."""

from __future__ import annotations

from pathlib import Path

from remusdb.allow.characters import LOG_FOLDER, UNHEARD
from remusdb.allow.commandline import HARMLESS
from remusdb.allow.judge import Row, table
from remusdb.config import READABLE_DIRS
from remusdb_agents.backup.standby import limits
from remusdb_agents.backup.standby.judge import REHEARSAL

PAGE = Path(__file__).parent.parent / "docs" / "accepted.md"
HEAD = """\
# What a protected VM may have

Written by `python -m tools.accepted` from the table that `protect`, `check` and `rehearse` go by
(`remusdb/allow/judge.py`). It lists what is let through. **Whatever is not on it is refused by its name**, with what to
do: an element or a value that nobody has looked at could be a way out that no gate holds, or a state that no copy has.

Paths are those of libvirt's domain XML. `a=x|y`: of attribute `a` only these values; a name without `=` is let through
with any value, `any` stands for all attributes, `any inside` for all that the element holds, too.

## By type

- **Serial and parallel ports, consoles, channels**: of type {kinds}.
  A file, and the `file` of a `<log>`, must be below `{folder}`, which every host has. A channel on a unix socket only
  for the guest agent (`org.qemu.guest_agent.0`) on libvirt's own socket.
- **USB redirection and smart cards**: by SPICE (`spicevmc`) alone. What a viewer plugs in there is held by nothing.
- **Random numbers**: from `/dev/urandom`, `/dev/random`, `/dev/hwrng` or QEMU itself.
- **Disks**: raw or qcow2 in a file, a block device or a volume of a pool, writable, this VM's alone, not encrypted by
  QEMU. **Drives** for CDs and floppies: empty.
- **Interfaces**: on a Linux bridge, by name or by a libvirt network that has one; without `<filterref>` and
  `<bandwidth>`, which the gate would pass by.
- **Firmware**: any that is read only; UEFI variables in a flash of their own (`<nvram>`), in a file.
- **Machine**: x86-64, a real type (`pc-q35-10.0`, `pc-q35-noble`), not an alias of one (`q35`).
- **Memory**: anonymous, memfd or in a file, private or shared; in huge pages of up to 2 MiB.
- **`qemu:commandline`**: {options}, each with a value
  that names no file; `-chardev`, `-mon` and `-incoming` only as remusdb itself writes them. Nothing else.
- **Lifecycle**: nothing that starts the VM again after a crash.

A display is none of this: who looks at a VM by VNC or SPICE, or at its serial console, sees what it shows now, before
the backup has it.

## What the backup asks besides

The backup's agent goes by the same list, and by what such a VM could do to *its* host (`check --to` tells it, as
`peer accepts`):

- **Files** that the VM names (kernel, initrd, firmware, option ROM, fwcfg) are in one of the folders of `readable_dirs`
  in agent.toml: {dirs}. Firmware that packages describe may be elsewhere.
- **`qemu:commandline`** has only what remusdb itself writes; **`qemu:override`** only numbers and switches.
- **Numbers**: {vcpus} vCPUs, or {per_cpu} for each of the backup's CPUs; {devices} devices; {threads} I/O threads;
  no real-time priority; displays on ports from {port} on (websockets
  from {websocket}), at an address in numbers.
- Its name does not end in `{rehearsal}`.

QEMU's program, security labels, cgroups, caches and sockets are the backup's own choice, whatever the VM has at home.
What a guest prints to a file goes to `{folder}NAME-serial.log` there.
"""
BACKUP = {
    "dirs": ", ".join(f"`{folder}`" for folder in READABLE_DIRS),
    "vcpus": limits.VCPUS,
    "per_cpu": limits.VCPUS_A_CPU,
    "devices": limits.DEVICES,
    "threads": limits.THREADS,
    "port": limits.PORTS["port"][0],
    "websocket": limits.PORTS["websocket"][0],
    "rehearsal": REHEARSAL,
}
FATES = {
    "gated": "Gated: held until the backup has the epoch it comes from",
    "mirrored": "Mirrored: on the backup, epoch by epoch",
    "display": "Displays: seen at once, held by nothing",
    "rebuilt": "Rebuilt on the backup, or for this host alone",
    "refused": "Looked at, and refused",
}


def page() -> str:
    """The whole of docs/accepted.md."""
    options = ", ".join(f"`{option}`" for option in HARMLESS if option not in ("-chardev", "-mon", "-incoming"))
    kinds = ", ".join(f"`{kind}`" for kind in UNHEARD)
    parts = [HEAD.format(kinds=kinds, folder=LOG_FOLDER, options=options, **BACKUP)]
    for fate, title in FATES.items():
        lines = [_line(path, row) for path, row in table().items() if row.fate == fate]
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(path: tuple[str, ...], row: Row) -> str:
    name = "/".join(path) or "domain"
    if row.fate == "refused":
        return f"- `{name}`"
    words = [name if values is None else f"{name}={'|'.join(sorted(values))}" for name, values in row.values.items()]
    words += ["any inside"] if row.anything_inside else ["any"] if row.any_attribute else []
    return f"- `{name}`" + (f": {', '.join(words)}" if words else "")


if __name__ == "__main__":
    PAGE.write_text(page())
