# SPDX-License-Identifier: Apache-2.0
"""The agent's port, of TCP and UDP, in the firewall that runs there, for the other hosts alone. Where none runs,
nothing is done.

firewalld and ufw keep their rules. nftables has whatever /etc/nftables.conf says: the rule is inserted into the chain
that drops, and the same line is added to that file.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from remusdb.setup.facts import Facts
from remusdb.setup.steps import Put, Run, Step
from remusdb.setup.wish import Named

NFTABLES_CONF = "/etc/nftables.conf"
_MARKS = {"tcp": "remusdb agent", "udp": "remusdb heartbeats"}  # comments of nftables' rules
PROTOCOLS = ("tcp", "udp")  # sessions; heartbeats of their own


def open_port(facts: Facts, others: Sequence[Named], port: int) -> list[Step]:
    """What is missing for the others to reach the port."""
    if facts.firewalld:
        return [step for other in others for step in _firewalld(facts, other, port)]
    if facts.ufw.startswith("Status: active"):
        return [step for other in others for step in _ufw(facts, other, port)]
    chain = _dropping_chain(facts) if facts.nftables else None
    return _nftables(facts, others, port, chain) if chain else []


def _family(other: Named) -> str:
    return "ipv6" if ":" in other.address else "ipv4"


def _firewalld(facts: Facts, other: Named, port: int) -> list[Step]:
    steps: list[Step] = []
    for protocol in PROTOCOLS:
        if other.is_ip:
            rule = (
                f'rule family="{_family(other)}" source address="{other.address}" '
                f'port port="{port}" protocol="{protocol}" accept'
            )
            told, option = rule, f"--add-rich-rule={rule}"
        else:
            told, option = f"{port}/{protocol}", f"--add-port={port}/{protocol}"
        if told not in facts.firewalld_rules:
            what = f"firewalld: port {port} ({protocol}) for {other.name}"
            steps += [Run(what, ("firewall-cmd", "--permanent", option)), Run(what, ("firewall-cmd", option))]
    return steps


def _ufw(facts: Facts, other: Named, port: int) -> list[Step]:
    source = other.address if other.is_ip else "any"
    shown = other.address if other.is_ip else "Anywhere"
    lines = [line.split() for line in facts.ufw.splitlines()]
    return [
        Run(
            f"ufw: port {port} ({protocol}) for {other.name}",
            ("ufw", "allow", "proto", protocol, "from", source, "to", "any", "port", str(port)),
        )
        for protocol in PROTOCOLS
        if not any(words[:2] == [f"{port}/{protocol}", "ALLOW"] and shown in words[2:] for words in lines)
    ]


def _dropping_chain(facts: Facts) -> tuple[str, str, str] | None:
    """Family, table and name of the chain for what comes in that drops what it does not know."""
    for one in facts.nft():
        chain = one.get("chain")
        if isinstance(chain, dict) and chain.get("hook") == "input" and chain.get("type") == "filter":
            where = (str(chain.get("family")), str(chain.get("table")), str(chain.get("name")))
            if chain.get("policy") == "drop" or _ends_in_drop(facts, where):
                return where
    return None


def _ends_in_drop(facts: Facts, chain: tuple[str, str, str]) -> bool:
    rules = [rule for one in facts.nft() if _chain_of(rule := one.get("rule")) == chain]
    last = rules[-1].get("expr", []) if rules and isinstance(rules[-1], dict) else []
    return any(isinstance(part, dict) and ("drop" in part or "reject" in part) for part in last)


def _chain_of(rule: Any) -> tuple[str, str, str] | None:
    return (str(rule.get("family")), str(rule.get("table")), str(rule.get("chain"))) if isinstance(rule, dict) else None


def _nftables(facts: Facts, others: Sequence[Named], port: int, chain: tuple[str, str, str]) -> list[Step]:
    steps: list[Step] = []
    lines = []
    for other, protocol in itertools.product(others, PROTOCOLS):
        source = (("ip6" if ":" in other.address else "ip"), "saddr", other.address) if other.is_ip else ()
        comment = f"{_MARKS[protocol]} for {other.name}"
        match = (*source, protocol, "dport", str(port))
        rule = ("insert", "rule", *chain, *match, "accept", "comment", f'"{comment}"')
        if not any(_chain_of(one.get("rule")) and one["rule"].get("comment") == comment for one in facts.nft()):
            steps.append(Run(f"nftables: port {port} ({protocol}) for {other.name}", ("nft", *rule)))
        if comment not in facts.nft_conf:
            lines.append(" ".join(rule))
    if lines and facts.nft_conf:
        text = "\n".join([facts.nft_conf, "", "# Added by `remusdb setup`.", *lines, ""])
        steps.append(Put("nftables: the same at each boot", NFTABLES_CONF, text.encode(), 0o755))
    return steps
