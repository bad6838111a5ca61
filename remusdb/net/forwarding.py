# SPDX-License-Identifier: Apache-2.0
"""Whether this host's packet filter drops what a bridge forwards: a VM behind it is not reached from outside.

With br_netfilter (`bridge-nf-call-iptables`) bridged IPv4 and IPv6 go through the FORWARD chains of the host, which
Docker and many firewalls set to drop. Chains of nftables' own bridge family are always asked.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec

from remusdb.core.probe import Forwarding
from remusdb.errors import GateError
from remusdb.jsontext import parse_json

SYSCTLS = Path("/proc/sys/net/bridge")  # there only while br_netfilter is loaded
LEGACY_TABLES = Path("/proc/net/ip_tables_names")
TIMEOUT_S = 5.0
_LETS_PASS = re.compile(r'"(accept|jump|goto|queue|vmap)"')
_LEGACY_LETS_PASS = re.compile(r"^-A FORWARD .*-[jg] (?!DROP|REJECT|LOG)", re.MULTILINE)


class _Chain(msgspec.Struct, frozen=True):
    """A chain of nftables; hook and policy are a base chain's alone."""

    family: str
    table: str
    name: str
    hook: str = ""
    policy: str = ""


class _Entry(msgspec.Struct, frozen=True):
    chain: _Chain | None = None


class _Listed(msgspec.Struct, frozen=True):
    nftables: list[_Entry] = []


def look() -> Forwarding:
    """Ask nft, and iptables where its old tables are in use. GateError where that cannot be asked."""
    called = any(_set(f"bridge-nf-call-{name}") for name in ("iptables", "ip6tables"))
    drops: list[str] = []
    may_drop: list[str] = []
    for name, certain in (*_nft(called), *(_legacy() if called else ())):
        (drops if certain else may_drop).append(name)
    return Forwarding(called, drops, may_drop)


def _set(name: str) -> bool:
    try:
        return (SYSCTLS / name).read_text().strip() == "1"
    except OSError:
        return False


def _nft(called: bool) -> list[tuple[str, bool]]:
    if shutil.which("nft") is None:
        if called:
            raise GateError("nft is not installed, so the packet filter cannot be asked", hint="apt install nftables")
        return []
    families = ("bridge", "inet", "ip", "ip6") if called else ("bridge",)
    found = []
    for chain in dropping(_run("nft", "-j", "list", "chains"), families):
        rules = _run("nft", "-j", "list", "chain", *chain)
        certain = chain[0] != "ip6" and _LETS_PASS.search(rules) is None  # the VM may not speak IPv6
        found.append((" ".join(chain), certain))
    return found


def dropping(listed: str, families: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """(family, table, chain) of those base chains on the way of forwarded packets whose policy is drop, in the JSON of
    `nft list chains`. GateError for what is none."""
    try:
        chains = [entry.chain for entry in parse_json(listed, _Listed).nftables if entry.chain is not None]
    except ValueError as exc:
        raise GateError(f"nft's list of chains cannot be read: {exc}") from exc
    return [
        (chain.family, chain.table, chain.name)
        for chain in chains
        if chain.hook == "forward" and chain.policy == "drop" and chain.family in families
    ]


def _legacy() -> list[tuple[str, bool]]:
    """iptables of the old kind, whose tables nft does not list."""
    try:
        if "filter" not in LEGACY_TABLES.read_text().split():
            return []
    except OSError:
        return []
    program = shutil.which("iptables-legacy") or shutil.which("iptables")
    rules = _run(program, "-S", "FORWARD") if program else ""
    if "-P FORWARD DROP" not in rules:
        return []
    return [("iptables FORWARD", _LEGACY_LETS_PASS.search(rules) is None)]


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_S, text=True).stdout
    except subprocess.CalledProcessError as exc:
        raise GateError(f"{' '.join(command)}: {exc.stderr.strip()[:200]}") from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise GateError(f"{command[0]} cannot be asked: {exc}") from exc
