# SPDX-License-Identifier: Apache-2.0
"""What VMs, hosts, disks and RAM blocks may be called, and what files and sockets of a VM are called.

libvirt takes nearly any text as a name: `&`, quotes, tabs, 247 bytes of it. A file's name may have 255 bytes, a
socket's whole path 107. So a name is written with %XX for whatever is not plain, and one that is then too long is told
by its hash.

The types here stand where bytes become values (messages, control requests, files): what has one of them was checked, so
nothing further in asks again whether a name could be a path.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Final, NewType
from urllib.parse import quote, unquote

from msgspec import Meta

from remusdb.errors import UsageError

NAME_MAX_BYTES = 247  # libvirt writes NAME.xml.new, and a file's name has 255 bytes at most
STEM_MAX_BYTES = 160  # leaves room in the 255 for what is written around it: `-term12.snapshot-...xml.partial`
SOCKET_PATH_MAX_BYTES = 107  # sun_path of sockaddr_un, without its final zero
HASHED = "%="  # begins no quoted name: behind a % there stand two hex digits
HASH_CHARS = 32

VmName = NewType("VmName", str)  # made by `require_name` alone

_HOST: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"
HostName = Annotated[
    str, Meta(min_length=1, max_length=64, pattern=rf"^{_HOST}\Z")
]  # in its config, and its certificate
HostOrNobody = Annotated[str, Meta(max_length=64, pattern=rf"^(?:{_HOST})?\Z")]

# libvirt takes these prefixes, letters up to what an int can count, and the number of a partition (virDiskNameParse);
# with an address beside it also others (vd_foo), which the preflight refuses.
_TARGET: Final = r"^(?:fd|hd|sd|vd|xvd|ubd)[a-z]{1,8}[0-9]{0,3}\Z"
DiskTarget = Annotated[str, Meta(pattern=_TARGET)]

BlockName = Annotated[str, Meta(pattern=r"^[\x20-\x7e]{1,255}\Z")]  # QEMU's RAMBlock.idstr has 256 bytes, with its zero

Uuid = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]  # as libvirt writes one
UuidOrNone = Annotated[str, Meta(pattern=r"^(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})?\Z")]


def require_name(name: object) -> VmName:
    """The text, if a VM can be called so: what asks may be a client or another host. UsageError if it cannot."""
    if not isinstance(name, str) or not 0 < len(name.encode(errors="replace")) <= NAME_MAX_BYTES:
        raise UsageError(f"a name is text of 1 to {NAME_MAX_BYTES} bytes, not {name!r:.80}")
    if "/" in name or not all(char.isprintable() or char == "\t" for char in name):
        raise UsageError(f"a name has no slash and no control characters but tabs: {name!r:.80}")
    return VmName(name)


def is_disk_target(text: str) -> bool:
    """Whether a disk can be replicated under this target name: `vda`, `sdb1`."""
    return re.match(_TARGET, text) is not None


def file_stem(name: str) -> str:
    """The name as the beginning of a file's name, or as a folder's. Two names never have the same one.

    `remusdb/host/libvirt-hook.sh` does the same in shell.
    """
    quoted = quote(name, safe=" ")
    if quoted.startswith("."):
        quoted = f"%2E{quoted[1:]}"
    return quoted if len(quoted) <= STEM_MAX_BYTES else _hashed(name)


def name_of(stem: str) -> str | None:
    """The name that has this stem; None where only a hash of it is there."""
    return None if stem.startswith(HASHED) else unquote(stem)


def socket_stem(folder: Path, before: str, name: str, after: str) -> str:
    """What stands for the name in the path FOLDER/BEFORE...AFTER of a socket: its hash where it would not fit."""
    stem = file_stem(name).replace(" ", "%20")
    whole = len(bytes(folder)) + 1 + len(before) + len(stem) + len(after)
    return stem if whole <= SOCKET_PATH_MAX_BYTES else _hashed(name)


def _hashed(name: str) -> str:
    return HASHED + hashlib.sha256(name.encode()).hexdigest()[:HASH_CHARS]
