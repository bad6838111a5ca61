# SPDX-License-Identifier: Apache-2.0
"""The QEMU process of a VM, without libvirt's help: found by libvirt's status file, believed by its command line.

libvirt's pid file would do as well, but its name is the VM's written as XML (`a&amp;b.pid`); the status file's is not.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from remusdb import safexml
from remusdb.errors import BadXml

RUN_FOLDER = Path("/run/libvirt/qemu")  # NAME.xml: what libvirt knows of a VM that runs; no setting changes the folder


def qemu_pid(vm: str) -> int | None:
    """The VM's QEMU, if there is one. A number may be used again: who acts on it takes a pidfd and looks again."""
    status = _status(vm)
    number = status.get("pid", "") if status is not None else ""
    pid = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else 0
    return pid if pid > 0 and is_qemu_of(vm, command_line(pid)) else None


def _status(vm: str) -> ET.Element | None:
    """The whole of libvirt's status file; None where there is none."""
    try:
        path = RUN_FOLDER / f"{vm}.xml"
        return safexml.parse_host(path.read_text(), str(path))
    except (OSError, ValueError, BadXml):
        return None


def command_line(pid: int) -> bytes:
    """As /proc gives it; empty for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def is_qemu_of(vm: str, line: bytes) -> bool:
    """Whether this command line is the QEMU that libvirt started for the VM."""
    return any(_words(value)[0] == b"guest=" + vm.encode() for value in _values(line, b"-name"))


def domain_folder(vm: str) -> Path | None:
    """The folder that libvirt keeps for this run of the VM, in its own words: QEMU could rewrite its command line.

    <domstatus ...>...<libDir path='/var/lib/libvirt/qemu/domain-1-pg'/>...<domain>...
    """
    status = _status(vm)
    found = status.find("./libDir") if status is not None else None  # beside the definition, not in it
    path = Path(found.get("path", "")) if found is not None else Path()
    return path if path.is_absolute() else None


def socket_of(chardev: str, line: bytes) -> Path | None:
    """The path of the socket that QEMU's `-chardev` of this id listens on."""
    for words in map(_words, _values(line, b"-chardev")):
        paths = [word.removeprefix(b"path=") for word in words if word.startswith(b"path=")]
        if f"id={chardev}".encode() in words and paths:
            return Path(os.fsdecode(paths[0]))
    return None


def _values(line: bytes, option: bytes) -> Iterator[bytes]:
    """What stands behind each such option."""
    words = line.split(b"\0")
    return (value for word, value in pairwise(words) if word == option)


def _words(value: bytes) -> list[bytes]:
    """The parts of an option's value: a comma inside one is doubled."""
    return [word.replace(b"\0", b",") for word in value.replace(b",,", b"\0").split(b",")]
