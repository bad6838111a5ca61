# SPDX-License-Identifier: Apache-2.0
"""The preflight's look at the backup: what a standby of this VM, and the VM after a takeover, would lack there. Pure.

Required is what `protect` would fail for, or what would leave the VM unreachable after a takeover; advice is all else.
What the backup could not find out is told as advice: it spoils no other answer.
"""

from __future__ import annotations

import shlex
import xml.etree.ElementTree as ET

from remusdb.allow.judge import judge
from remusdb.allow.problem import joined, vm_of
from remusdb.config import HEARTBEATS_PER_SILENCE
from remusdb.core.probe import Answer, Namesake
from remusdb.preflight import apparmor, needs
from remusdb.preflight import peer_host as preflight_peer_host
from remusdb.preflight import peer_net as preflight_peer_net
from remusdb.preflight.checks import Check, advice, required
from remusdb.preflight.here import Here


def decide(peer: str, answer: Answer | None, here: Here, tree: ET.Element) -> list[Check]:
    """Every check of what the agent of `peer` says."""
    if answer is None:
        old = f"the agent of {peer} is older, and does not report what this VM would lack there"
        return [advice("peer answer", old, "", f"install the same remusdb on {peer}, and restart its remusdb-agent")]
    return [
        _session(peer, answer, here),
        *_arbiter(peer, answer, here),
        _refusals(peer, answer, tree),
        *_domains(peer, answer, tree),
        *preflight_peer_host.decide(peer, answer, here, tree),
        *_files(peer, answer, tree),
        *preflight_peer_net.decide(peer, answer, here, tree),
        *_apparmor(peer, answer),
        _unknown(peer, answer, here),
    ]


def _session(peer: str, answer: Answer, here: Here) -> Check:
    problems, hints = [], []
    if answer.sees != here.host:
        problems.append(f"{peer} sees the certificate of {answer.sees}, and this host is {here.host}")
        hints.append(f"put the certificate of {here.host} into /etc/remusdb/tls here: remusdb certs --out tls --host …")
    if answer.agent != peer:
        problems.append(f"the agent that answers for {peer} calls itself {answer.agent}")
        hints.append(f"name = {peer!r} in its agent.toml, or [peers.{answer.agent}] in host.toml")
    if answer.busy_with and answer.busy_with != here.host:
        problems.append(f"{peer} keeps a VM of this name for host {answer.busy_with}")
        hints.append("two VMs of one name cannot have the same backup: choose another, or rename one: virsh domrename")
    if here.heartbeat_ms * HEARTBEATS_PER_SILENCE > answer.silence_ms:
        problems.append(f"a heartbeat each {here.heartbeat_ms} ms, and {peer} takes over after {answer.silence_ms}")
        fits = answer.silence_ms // HEARTBEATS_PER_SILENCE
        hints.append(f"heartbeat_ms = {fits} or less in host.toml, or a longer silence_ms in agent.toml of {peer}")
    return required("peer session", problems, f"{peer} would follow this host", "; ".join(hints))


def _arbiter(peer: str, answer: Answer, here: Here) -> list[Check]:
    said = answer.arbiter
    if said is None or (not here.arbiter and not said.cluster and not said.problem):
        return []
    problems, hint = [], said.hint
    if said.problem:
        problems = [f"asked from {peer}: {said.problem}"]
    elif here.arbiter is not None and here.arbiter != said.cluster:
        mine, theirs = (f"cluster {one}" if one else "none" for one in (here.arbiter, said.cluster))
        problems = [f"this host uses {mine}, {peer} uses {theirs}"]
        hint = "give host.toml and agent.toml of both hosts the same [arbiter], or none, and restart both daemons"
    return [required("peer arbiter", problems, f"{peer} uses the same, and it accepts changes", hint)]


def _refusals(peer: str, answer: Answer, tree: ET.Element) -> Check:
    """What the agent would not start. It goes by this host's list, too, whose words were told already."""
    told = {problem.what for problem in judge(tree)}
    new = [one for one in answer.refusals if one.what not in told]
    hints = joined(vm_of(tree), (one.hint for one in new))
    return required("peer accepts", [f"{peer}: {one.what}" for one in new], f"{peer} would start it", hints)


def _domains(peer: str, answer: Answer, tree: ET.Element) -> list[Check]:
    if answer.namesakes is None:
        return []
    name, uuid = tree.findtext("name") or "", tree.findtext("uuid") or ""
    others = [(one, _danger(one, name, uuid)) for one in answer.namesakes]
    bad = [(one, why) for one, why in others if why]
    kept = [one for one, why in others if not why and one.persistent and not one.ours]
    return [
        required(
            "peer domains",
            [f"{peer} {why}" for _, why in bad],
            "none in the way",
            "; ".join(f"on {peer}: {_away(one)}" for one, _ in bad),
        ),
        advice(
            "peer definition",
            f"{name} is defined on {peer} as well, and off: a takeover replaces that definition" if kept else "",
            f"{name} is not defined on {peer}",
            "; ".join(f"if nobody needs it, on {peer}: {_away(one)}" for one in kept),
        ),
    ]


def _danger(one: Namesake, name: str, uuid: str) -> str:
    """Why this domain may not stay: it keeps the standby from starting, or may start as a second VM."""
    if one.name != name:
        return f"has a domain {one.name} with the same UUID"
    if one.uuid != uuid:
        return f"has another domain named {name}, with UUID {one.uuid}"
    if one.active and not one.ours:
        return f"runs a domain named {name} itself"
    return f"has {name} defined with autostart: a second one would start with that host" if one.autostart else ""


def _away(one: Namesake) -> str:
    """The command that undefines it, with all that `virsh undefine` wants to hear."""
    undefine = " ".join(["virsh undefine", shlex.quote(one.name), *one.leftovers])
    if one.ours:
        return undefine
    if one.active:
        end = f"see what it is (virsh dumpxml {shlex.quote(one.name)}); if it is not wanted: virsh destroy"
        return f"{end} {shlex.quote(one.name)}" + (f" && {undefine}" if one.persistent else "")
    return undefine


def _files(peer: str, answer: Answer, tree: ET.Element) -> list[Check]:
    if answer.paths is None:
        return []
    wanted = needs.paths(tree)
    bad = [one for one in wanted if answer.paths.get(one.path)]
    return [
        required(
            "peer files",
            [f"{one.what} {one.path} {answer.paths[one.path]} on {peer}" for one in bad],
            f"{len(answer.paths)} are there",
            "; ".join(dict.fromkeys(_bring(peer, one) for one in bad)),
        ),
        *(
            [advice("peer files unasked", f"{peer} was not asked about {told}", "", f"see that they are on {peer}")]
            if (told := ", ".join(one.path for one in wanted if one.path not in answer.paths)) and not answer.refusals
            else []
        ),
    ]


def _bring(peer: str, one: needs.Path) -> str:
    path = shlex.quote(one.path)
    if one.kind == "folder":
        return f"on {peer}: mkdir -p {path}"
    return f"have the same file on {peer}: rsync -aR {path} {peer}:/"


def _apparmor(peer: str, answer: Answer) -> list[Check]:
    found = answer.confinement
    if found is None:
        return []
    rules = {apparmor.CHANNEL_RULE: found.channel, apparmor.MONITOR_RULE: found.monitor}
    lacks = [rule for rule, there in rules.items() if found.confined and not there]
    told = f"AppArmor on {peer} does not let QEMU reach all of remusdb's sockets" if lacks else ""
    good = "lets QEMU reach remusdb's sockets" if found.confined else "does not confine QEMU"
    return [advice("peer AppArmor", told, good, f"on {peer}: {apparmor.hint(*lacks)}")]


def _unknown(peer: str, answer: Answer, here: Here) -> Check:
    there = [f"{name.replace('_', ' ')} of {peer} could not be asked: {why}" for name, why in answer.errors.items()]
    mine = [f"{name.replace('_', ' ')} of this host could not be asked: {why}" for name, why in here.errors.items()]
    return advice("peer answer", "; ".join(there + mine), "all was answered", f"see the log of remusdb-agent on {peer}")
