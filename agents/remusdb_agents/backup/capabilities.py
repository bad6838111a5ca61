# SPDX-License-Identifier: Apache-2.0
"""What this backup can run, for the primary that asks before it protects.

A host that agent.toml lists may ask. It learns of this host what it would learn by protecting a VM to here: the
XML that it sends decides what is looked for, by the places in it that `remusdb.preflight.needs` names, each as
there or not.
Its size and the number of paths are bounded, no file is opened, no program is started by a name of the peer's, and each
question is logged.
"""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass

import libvirt

from remusdb import __version__, safexml
from remusdb.core.messages import Capabilities, unpack
from remusdb.core.probe import XML_MAX_BYTES, Answer, Arbitration, Probe, Refusal
from remusdb.core.roles import OWNING
from remusdb.errors import BadFrame, CannotProtect, RemusError
from remusdb.net import forwarding, offloads
from remusdb.preflight import apparmor, cpus, resources
from remusdb.preflight.looks import Looks, look_at
from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.domain import connect
from remusdb_agents.backup import lookups
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.namesakes import namesakes
from remusdb_agents.backup.replica import Replica
from remusdb_agents.backup.standby.here import look
from remusdb_agents.backup.standby.judge import Here, judge
from remusdb_agents.backup.standby.limits import memory_bytes

log = logging.getLogger(__name__)

CALL_S = 5.0
LOOKUPS_S = 9.0  # all of them; the primary waits 15 s for the answer
LIBVIRT_THREADS = 1
Known = Callable[[str], Replica | None]


@dataclass(frozen=True)
class Asked:
    """A PROBE about a VM: its XML, and that parsed."""

    probe: Probe
    tree: ET.Element

    @property
    def vm(self) -> str:
        """The VM's name."""
        return self.tree.findtext("name") or ""


def gather(context: Context, asked: Asked | None, asker: str, known: Known) -> Capabilities:
    """Ask this host's libvirt and kernel. VmError when libvirt does not answer.

    `asked`: None from a primary that asks about no VM. `asker`: the name in the certificate of whoever asks.
    `known`: the replica of a VM on this host.
    """
    calls = BlockingCalls(CALL_S, threads=LIBVIRT_THREADS)
    try:
        connection = connect(context.config.agent.libvirt_uri, calls)
        try:
            capabilities = calls.call("capabilities", connection.getCapabilities)
            host = Host(context, connection, capabilities)
            return Capabilities(
                version=__version__,
                qemu_version=_triple(calls.call("QEMU's version", connection.getVersion)),
                libvirt_version=_triple(calls.call("libvirt's version", connection.getLibVersion)),
                machines=host.machines,
                answer=host.answer(asked, asker, known) if asked else None,
            )
        finally:
            connection.close()
    finally:
        calls.close()


def question(asked: bytes | memoryview) -> Asked | None:
    """What the payload of a PROBE asks; None for an empty one, which asks about no VM. BadFrame."""
    if not len(asked):
        return None
    if len(asked) > 2 * XML_MAX_BYTES:
        raise BadFrame(f"a PROBE of {len(asked)} bytes")
    probe = unpack(Probe, asked)
    if len(probe.xml.encode()) > XML_MAX_BYTES:
        raise BadFrame(f"a PROBE about a VM with more than {XML_MAX_BYTES} bytes of XML")
    return Asked(probe, safexml.parse(probe.xml))


class Host:
    """This host, for one question."""

    def __init__(self, context: Context, connection: libvirt.virConnect, capabilities: str) -> None:
        self._context = context
        self._connection = connection
        self._capabilities = capabilities
        self._tree = safexml.parse_host(capabilities, "libvirt's capabilities")

    @property
    def machines(self) -> list[str]:
        """Machine types of its QEMU."""
        return sorted({node.text or "" for node in self._tree.iterfind(".//arch[@name='x86_64']//machine")})

    def answer(self, asked: Asked, asker: str, known: Known) -> Answer:
        """All that can be found out; why the rest cannot."""
        probe, tree, vm = asked.probe, asked.tree, asked.vm
        replica = known(vm)
        leaving = self._leaving(vm)
        standby = leaving or (replica is not None and replica.phase.holds)
        log.info("%s asks what this host has for VM %s", asker, vm)
        here = look(tree, self._context.config)
        looks = {**self._host(), **self._libvirt(probe, tree, leaving), **self._kernel(tree, here)}
        if not standby:
            looks["memory_problem"] = lambda: self._memory(vm, memory_bytes(tree))
        found, errors = look_at(looks, LOOKUPS_S)
        return Answer(
            agent=self._context.name,
            sees=asker,
            silence_ms=self._context.config.failover.silence_ms,
            standby=standby,
            busy_with=replica.peer if replica is not None and replica.stream is not None else "",
            datagrams=self._context.ears.probe() if self._context.ears is not None else None,
            errors=errors,
            refusals=[Refusal(problem.what, problem.hint) for problem in judge(tree, here, None)],
            **found,
        )

    def _host(self) -> Looks:
        return {
            "arbiter": self._arbiter,
            "domain_types": lambda: [
                node.get("type", "") for node in self._tree.iterfind("./guest/arch[@name='x86_64']/domain")
            ],
            "cpus": resources.online_cpus,
            "nodes": resources.memory_nodes,
            "huge_pages": resources.huge_pages,
            "huge_page_kib": resources.default_huge_page_kib,
            "tun_offloads": offloads.tun_offloads,
            "vhost": offloads.vhost_features,
            "forwarding": forwarding.look,
            "confinement": lambda: apparmor.look(self._capabilities),
            "libvirt_hooks": lookups.other_hooks,
            "image_free": lambda: lookups.room(self._context.config.agent.image_dir),
        }

    def _leaving(self, vm: str) -> bool:
        """Whether this host ran the VM, and quarantines it before it keeps a replica: see core/backup_hello.py."""
        try:
            state = self._context.store.load(vm)
        except RemusError:
            return False
        return state.role in OWNING or (state.role == "fenced" and not state.quarantined)

    def _libvirt(self, probe: Probe, tree: ET.Element, leaving: bool) -> Looks:
        name, uuid = tree.findtext("name") or "", tree.findtext("uuid") or ""
        return {
            "namesakes": lambda: namesakes(self._connection, name, uuid, leaving),
            "cpu": lambda: cpus.compare(self._connection, tree),
            "host_cpu": lambda: cpus.compare_host(self._connection, probe.host_cpu),
        }

    def _kernel(self, tree: ET.Element, here: Here) -> Looks:
        config = self._context.config
        return {
            "paths": lambda: lookups.paths(tree, here),
            "bridges": lambda: lookups.bridges(tree, config.network.bridges),
            "taken_links": lambda: lookups.taken_links(tree),
            "listens": lambda: lookups.listens(tree),
            "images": lambda: lookups.images(config.agent.image_dir, tree),
        }

    def _arbiter(self) -> Arbitration:
        arbiter = self._context.arbiter
        if arbiter is None:
            return Arbitration()
        health = arbiter.health()
        return Arbitration("" if health.problem else arbiter.cluster(), health.problem, health.hint)

    def _memory(self, vm: str, ram_bytes: int) -> str:
        try:
            self._context.admission.check(vm, ram_bytes)
        except CannotProtect as exc:
            return str(exc)
        return ""


def _triple(number: int) -> tuple[int, int, int]:
    """libvirt writes a version as major * 1,000,000 + minor * 1,000 + release."""
    return number // 1_000_000, number // 1_000 % 1_000, number % 1_000
