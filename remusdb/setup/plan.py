# SPDX-License-Identifier: Apache-2.0
"""From what a host is like to what is missing: no socket, no file. A host that has everything gets no step.

What is there is never replaced: a certificate of another CA, or a configuration that does not name the other hosts, is
a problem that the operator is told of, and nothing is done then.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from remusdb.preflight import apparmor
from remusdb.setup import configs, firewall
from remusdb.setup.facts import ETC, RULE, UNITS, Facts
from remusdb.setup.steps import Put, Run, Send, Step
from remusdb.setup.wish import AGENT_PORT, Wish

BACKPORTS = {"bookworm": "bookworm-backports"}  # QEMU there is new enough
KNOWN = ("bookworm", "trixie")
KERNEL = (6, 7)  # of a primary: docs/facts.md
INBOX = "/run/remusdb-setup/remusdb.deb"
INSTALL_S = 1200.0


@dataclass(frozen=True)
class Certificates:
    """What `remusdb certs` made for one host, empty where it is still to be made; and for etcd, where one is used."""

    ca: bytes = b""
    cert: bytes = b""
    key: bytes = field(default=b"", repr=False)
    etcd: dict[str, bytes] = field(default_factory=dict, repr=False)  # ca.pem, cert.pem, key.pem


@dataclass(frozen=True)
class Plan:
    """For one host. With problems there are no steps; notes are worth knowing, and stop nothing."""

    steps: list[Step] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan(name: str, facts: Facts, wish: Wish, certificates: Certificates) -> Plan:
    """What is to be done on this host."""
    problems = [*_package_problems(facts, wish), *_own_problems(name, facts, wish, certificates)]
    notes = _notes(facts)
    if problems:
        return Plan(problems=problems, notes=notes)
    steps = [
        *_package(facts, wish),
        *_certificates(facts, certificates),
        *_configurations(name, facts, wish),
        *_rule(facts, wish),
        *firewall.open_port(facts, wish.others(name), configs.agent_port(facts.agent_toml, AGENT_PORT)),
    ]
    if not facts.running:
        units = tuple(f"{unit}.service" for unit in UNITS)
        steps.append(Run("start the daemons, now and at each boot", ("systemctl", "enable", "--now", *units)))
    return Plan(steps, notes=notes)


def _package_problems(facts: Facts, wish: Wish) -> list[str]:
    if wish.deb is None:
        return [] if facts.program or facts.version else ["remusdb is not installed there: name the package with --deb"]
    if facts.version == wish.deb_version:
        return []
    if facts.codename not in KNOWN:
        return [f"the package is for Debian 12 and 13, and this is {facts.codename or 'another system'}"]
    backports = BACKPORTS.get(facts.codename)
    if backports and backports not in facts.suites.split():
        return [
            f"apt there has no {backports}, where a QEMU is that is new enough: add it to /etc/apt, and `apt update`"
        ]
    return []


def _own_problems(name: str, facts: Facts, wish: Wish, certificates: Certificates) -> list[str]:
    """What is there, and of which nobody but the operator can say whether it may go."""
    found = []
    if facts.cert and facts.cert != certificates.cert.decode().strip():
        found.append(
            f"{ETC}/tls/cert.pem is not of the certificates given here: name their folder with --certs, or remove it"
        )
    for file, text, table in (("host.toml", facts.host_toml, "peers"), ("agent.toml", facts.agent_toml, "primaries")):
        if text:
            found += [f"{ETC}/{file} is there already, and {lack}" for lack in configs.lacks(text, table, wish, name)]
    return found


def _notes(facts: Facts) -> list[str]:
    version = re.match(r"(\d+)\.(\d+)", facts.kernel)
    if version is None or (int(version[1]), int(version[2])) >= KERNEL:
        return []
    return [f"its kernel is {facts.kernel}: a host that protects VMs needs Linux {KERNEL[0]}.{KERNEL[1]}"]


def _package(facts: Facts, wish: Wish) -> list[Step]:
    if wish.deb is None or facts.version == wish.deb_version:
        return []
    suite = BACKPORTS.get(facts.codename)
    apt = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q", "--no-install-recommends")
    of = ("-t", suite) if suite else ()
    what = f"install remusdb {wish.deb_version}"
    steps: list[Step] = [Send(what, wish.deb, INBOX), Run(what, (*apt, *of, INBOX), INSTALL_S)]
    steps.append(Run("remove the package's file", ("rm", "-r", INBOX.rpartition("/")[0])))
    if not facts.hook:
        # As patterns: a unit that a host does not have is an error (5) by its name, and one of the two is not there.
        restart = ("systemctl", "try-restart", "libvirtd.servic[e]", "virtqemud.servic[e]")
        steps.append(Run("have libvirt ask remusdb's hook before it starts a VM (VMs run on)", restart))
    return steps


def _certificates(facts: Facts, made: Certificates) -> list[Step]:
    what = "this host's certificate"
    steps: list[Step] = []
    if not (facts.cert and facts.key and facts.ca):
        steps += [
            Put(what, f"{ETC}/tls/ca.pem", made.ca),
            Put(what, f"{ETC}/tls/cert.pem", made.cert),
            Put(what, f"{ETC}/tls/key.pem", made.key, 0o600),
        ]
    if made.etcd and not facts.etcd_key:
        modes = {"key.pem": 0o600}
        for file, content in sorted(made.etcd.items()):
            steps.append(Put("the arbiter's certificate", f"{ETC}/etcd/{file}", content, modes.get(file, 0o644)))
    return steps


def _configurations(name: str, facts: Facts, wish: Wish) -> list[Step]:
    steps: list[Step] = []
    if not facts.host_toml:
        steps.append(Put("the daemon's configuration", f"{ETC}/host.toml", configs.host_toml(name, wish).encode()))
    if not facts.agent_toml:
        steps.append(Put("the agent's configuration", f"{ETC}/agent.toml", configs.agent_toml(name, wish).encode()))
    return steps


def _rule(facts: Facts, wish: Wish) -> list[Step]:
    """AppArmor's, where AppArmor is. The package brings it."""
    if wish.deb is not None or facts.version or not facts.apparmor:
        return []
    rules = (apparmor.CHANNEL_RULE, apparmor.MONITOR_RULE)
    if all(rule in facts.rule for rule in rules):
        return []
    text = "\n".join([*(facts.rule.splitlines() or ["# What QEMU may do for remusdb."]), *rules, ""])
    return [Put("AppArmor lets QEMU reach remusdb (for each VM from its next start)", RULE, text.encode())]
