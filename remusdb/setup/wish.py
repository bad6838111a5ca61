# SPDX-License-Identifier: Apache-2.0
"""What the hosts are to become, as the operator said it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from remusdb.errors import UsageError

AGENT_PORT = 7473
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,252}")
_URL = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+")
_DEB = re.compile(r"remusdb_([0-9A-Za-z.+~-]+)_(?:amd64|all)\.deb")


@dataclass(frozen=True)
class Named:
    """A host by its name in remusdb, and the address at which the others reach its agent."""

    name: str
    address: str

    @property
    def is_ip(self) -> bool:
        """Whether the address is a number, which a firewall's rule can name."""
        try:
            ipaddress.ip_address(self.address)
        except ValueError:
            return False
        return True


@dataclass(frozen=True)
class Wish:
    """The same for all hosts of one run."""

    hosts: tuple[Named, ...]
    deb: Path | None = None  # the package; None: it is installed already
    arbiter: tuple[str, ...] = ()  # etcd's endpoints
    arbiter_tls: bool = False  # whether ca.pem, cert.pem and key.pem for etcd are given

    def others(self, name: str) -> list[Named]:
        """All hosts but that one."""
        return [host for host in self.hosts if host.name != name]

    @property
    def deb_version(self) -> str | None:
        """The version of the package, from its file's name."""
        found = _DEB.fullmatch(self.deb.name) if self.deb is not None else None
        return found[1] if found else None


def read_hosts(words: tuple[str, ...]) -> tuple[Named, ...]:
    """`alpha=192.0.2.1 beta=192.0.2.2`, checked: names and addresses become lines of files and of commands."""
    found = []
    for word in words:
        name, _, address = word.partition("=")
        if not _NAME.fullmatch(name) or name == "ca" or not _ADDRESS.fullmatch(address):
            raise UsageError(f"{word!r} is no host", hint="NAME=ADDRESS, as in alpha=192.0.2.1")
        found.append(Named(name, address))
    if len({host.name for host in found}) != len(found) or len({host.address for host in found}) != len(found):
        raise UsageError("a host is named twice")
    if len(found) < 2:
        raise UsageError("at least two hosts are needed", hint="remusdb setup alpha=192.0.2.1 beta=192.0.2.2")
    return tuple(found)


def check_wish(wish: Wish) -> None:
    """UsageError where something in it cannot be."""
    if wish.deb is not None and wish.deb_version is None:
        raise UsageError(f"{wish.deb}: not a package of remusdb by its name", hint="remusdb_VERSION_amd64.deb")
    for url in wish.arbiter:
        if not _URL.fullmatch(url):
            raise UsageError(f"{url!r} is no endpoint of an etcd", hint="https://192.0.2.3:2379")
    if wish.arbiter_tls and not wish.arbiter:
        raise UsageError("certificates for an arbiter are given, and no arbiter", hint="--arbiter https://...")
