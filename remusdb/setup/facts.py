# SPDX-License-Identifier: Apache-2.0
"""What a host is like before it is set up: one shell script that only looks, and its answer as a value.

The script prints a line a fact: its name, and what was found in base64. What a command says on stderr is not a fact.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import Any

from remusdb.errors import RemusError

ETC = "/etc/remusdb"
RULE = "/etc/apparmor.d/abstractions/libvirt-qemu.d/remusdb"
HOOK = "/etc/libvirt/hooks/qemu.d/remusdb"
UNITS = ("remusdb-agent", "remusdb-host", "remusdb-evacuate")
_FACT_MAX_BYTES = 4 << 20

LOOK = rf"""
fact() {{ printf '%s ' "$1"; shift; "$@" 2> /dev/null | head -c {_FACT_MAX_BYTES} | base64 -w 0; echo; }}
codename() {{ . /etc/os-release && printf %s "${{VERSION_CODENAME-}}"; }}
units() {{ for unit in {" ".join(UNITS)}; do
    printf '%s %s %s\n' $unit "$(systemctl is-enabled $unit 2> /dev/null)" "$(systemctl is-active $unit 2> /dev/null)"
done; }}
backports() {{ apt-get indextargets --format '$(CODENAME)' 'Created-By: Packages'; }}
rich() {{ firewall-cmd --list-rich-rules && firewall-cmd --list-ports; }}
active() {{ systemctl is-active --quiet "$1" && echo yes; }}
there() {{ [ -e "$1" ] && echo yes; }}
vms() {{ virsh -c qemu:///system list --name; }}
fact codename codename
fact kernel uname -r
fact program sh -c 'command -v remusdb'
fact package dpkg-query -W -f '${{db:Status-Status}} ${{Version}}' remusdb
fact suites backports
fact ca cat {ETC}/tls/ca.pem
fact cert cat {ETC}/tls/cert.pem
fact key there {ETC}/tls/key.pem
fact host_toml cat {ETC}/host.toml
fact agent_toml cat {ETC}/agent.toml
fact etcd_key there {ETC}/etcd/key.pem
fact apparmor there /etc/apparmor.d/abstractions
fact rule cat {RULE}
fact hook there {HOOK}
fact units units
fact firewalld active firewalld
fact firewalld_rules rich
fact ufw ufw status
fact nftables active nftables
fact nft_ruleset nft -j list ruleset
fact nft_conf cat /etc/nftables.conf
fact vms vms
"""


@dataclass(frozen=True)
class Facts:
    """Of one host. Texts are empty where there is nothing."""

    codename: str = ""
    kernel: str = ""
    program: str = ""  # where `remusdb` is
    package: str = ""  # `installed VERSION`
    suites: str = ""  # the codenames that apt has lists of
    ca: str = ""
    cert: str = ""
    key: str = ""  # whether there is one; it is not read
    host_toml: str = ""
    agent_toml: str = ""
    etcd_key: str = ""
    apparmor: str = ""
    rule: str = ""
    hook: str = ""
    units: str = ""  # NAME ENABLED ACTIVE
    firewalld: str = ""
    firewalld_rules: str = ""
    ufw: str = ""
    nftables: str = ""
    nft_ruleset: str = field(default="", repr=False)
    nft_conf: str = ""
    vms: str = ""

    @property
    def version(self) -> str | None:
        """The installed package's version; None: it is not installed as a package."""
        state, _, version = self.package.partition(" ")
        return version if state == "installed" else None

    @property
    def running(self) -> bool:
        """Whether every unit is enabled and active."""
        found = [line.split()[1:] for line in self.units.splitlines()]
        return len(found) == len(UNITS) and all(words == ["enabled", "active"] for words in found)

    def nft(self) -> list[dict[str, Any]]:
        """The objects of nftables' ruleset."""
        try:
            read = json.loads(self.nft_ruleset or "{}")
        except ValueError:
            return []
        found = read.get("nftables", []) if isinstance(read, dict) else []
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def read_facts(told: str) -> Facts:
    """The script's answer. RemusError where it is none."""
    found: dict[str, str] = {}
    for line in told.splitlines():
        name, _, value = line.partition(" ")
        if name in Facts.__dataclass_fields__:
            try:
                found[name] = base64.b64decode(value, validate=True).decode(errors="replace").strip()
            except binascii.Error as exc:
                raise RemusError(f"the host's answer about {name} cannot be read") from exc
    if set(found) != set(Facts.__dataclass_fields__):
        raise RemusError("the host does not answer as a Debian does", hint="is its shell a POSIX one?")
    return Facts(**found)
