# SPDX-License-Identifier: Apache-2.0
"""host.toml and agent.toml for a host that has none. One that is there is the operator's, and only looked at."""

from __future__ import annotations

import json
import tomllib

from remusdb.setup.wish import Wish

HEAD = "# Written by `remusdb setup`. Every setting: /usr/share/doc/remusdb/docs/configuration.md.\n"


def host_toml(name: str, wish: Wish) -> str:
    """The daemon's: this host's VMs may be protected to each of the others."""
    parts = [f"{HEAD}[host]\nname = {_text(name)}\n"]
    parts += [f"[peers.{_key(other.name)}]\naddress = {_text(other.address)}\n" for other in wish.others(name)]
    return "\n".join([*parts, *_arbiter(wish)])


def agent_toml(name: str, wish: Wish) -> str:
    """The agent's: each of the others may keep standbys here."""
    parts = [f"{HEAD}[agent]\nname = {_text(name)}\n"]
    parts += [f"[primaries.{_key(other.name)}]\n" for other in wish.others(name)]
    return "\n".join([*parts, *_arbiter(wish)])


def lacks(text: str, table: str, wish: Wish, name: str) -> list[str]:
    """What a file that is there does not say and must, in words: its own name, and the others in `table`."""
    head = "host" if table == "peers" else "agent"
    try:
        read = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        return [f"is not TOML: {exc}"]
    own, named = read.get(head), read.get(table, {})
    found = [] if isinstance(own, dict) and own.get("name") == name else [f'[{head}] has not name = "{name}"']
    known = named if isinstance(named, dict) else {}
    found += [f"[{table}.{other.name}] is missing" for other in wish.others(name) if other.name not in known]
    if wish.arbiter and "arbiter" not in read:
        found.append("[arbiter] is missing")
    return found


def agent_port(text: str, default: int) -> int:
    """The port that a file names, which a firewall has to let through."""
    try:
        port = tomllib.loads(text).get("agent", {}).get("port", default)
    except (tomllib.TOMLDecodeError, AttributeError):
        return default
    return port if isinstance(port, int) and 0 < port < 65536 else default


def _arbiter(wish: Wish) -> list[str]:
    if not wish.arbiter:
        return []
    lines = ["[arbiter]", f"endpoints = {json.dumps(list(wish.arbiter))}"]
    if wish.arbiter_tls:
        lines += [f'{key} = "/etc/remusdb/etcd/{key}.pem"' for key in ("ca", "cert", "key")]
    return ["\n".join(lines) + "\n"]


def _text(text: str) -> str:
    return json.dumps(text)  # JSON's strings are TOML's, too


def _key(name: str) -> str:
    return json.dumps(name) if "." in name else name
