# SPDX-License-Identifier: Apache-2.0
"""What the daemon asks of libvirt itself, outside any worker: the list of VMs, `check` and `prepare`.

Every question has a deadline: a hung libvirtd must not hang status.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

import libvirt

from remusdb import safexml
from remusdb.arbiter.arbiter import Arbiter
from remusdb.config import HostConfig
from remusdb.core.messages import Refuse
from remusdb.core.probe import Probe
from remusdb.errors import CannotProtect, RemusError, VmError
from remusdb.host import libvirt_hook
from remusdb.preflight import apparmor
from remusdb.preflight import peer as preflight_peer
from remusdb.preflight.checks import Check, advice, required
from remusdb.preflight.cpus import host_cpu
from remusdb.preflight.decide import decide
from remusdb.preflight.gather import Inventory, PeerInventory, VmInventory, gather_host, gather_vm
from remusdb.preflight.here import gather
from remusdb.transport.agent_client import Agent
from remusdb.transport.datagrams import come_through
from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.domain import connect
from remusdb.vm.prepare import confined_without_rule, prepare

LIST_TIMEOUT_S = 2.0
LOOK_TIMEOUT_S = 15.0


class Inspection(Protocol):
    """A look at this host's VMs."""

    def vms(self) -> dict[str, bool]:
        """Name -> running, of every VM libvirt knows."""

    def check(self, vm: str, peer: str | None) -> list[Check]:
        """The preflight's checks."""

    def prepare(self, vm: str) -> list[str]:
        """Edit the VM's persistent definition; what was changed."""

    def start(self, vm: str) -> None:
        """Boot a VM that is off. VmError when libvirt does not."""

    def guard_starts(self, state_dir: Path) -> bool:
        """Have libvirt refuse to start what another host owns; whether libvirt must be restarted to know of it."""


class LibvirtInspection:
    """The real one."""

    def __init__(self, config: HostConfig) -> None:
        self._config = config
        self._uri = config.host.libvirt_uri
        self._calls = BlockingCalls(LIST_TIMEOUT_S, threads=2)  # one for the question, one for connect() inside it
        self._lock = threading.Lock()
        self._pending: Future[dict[str, bool]] | None = None
        self._connection: libvirt.virConnect | None = None

    def vms(self) -> dict[str, bool]:
        """Name -> running. VmError when libvirt is not there, or does not answer in time."""
        with self._lock:  # a question that hangs is waited for again, not asked again
            if self._pending is None or self._pending.done():
                self._pending = self._calls.start(self._ask)
            pending = self._pending
        return self._calls.finish(pending, "list of VMs")

    def _ask(self) -> dict[str, bool]:
        try:
            if self._connection is None or not self._connection.isAlive():
                self._connection = connect(self._uri, self._calls)
            return {domain.name(): bool(domain.isActive()) for domain in self._connection.listAllDomains()}
        except (libvirt.libvirtError, VmError):
            self._connection = None
            raise

    def check(self, vm: str, peer: str | None) -> list[Check]:
        """Gather and decide."""
        protection = self._config.for_vm(vm)
        calls = BlockingCalls(LOOK_TIMEOUT_S, threads=1)  # of its own: a look may take longer than a list
        try:
            vm_inventory, capabilities = calls.call(f"VM {vm}", self._gather_vm, vm)
            inventory = Inventory(
                vm=vm_inventory,
                host=gather_host(capabilities, try_plug=protection.gate != "tap"),
                gate=protection.gate,
                encoding=protection.encoding,
                run_dir=self._config.host.run_dir,
                peer=self._look_at(peer, Probe(vm_inventory.xml, host_cpu(capabilities))) if peer else None,
            )
            peers = calls.call(f"VM {vm}", self._compare, inventory, inventory.peer) if inventory.peer else []
        finally:
            calls.close()
        return [*decide(inventory), *peers, self._hook(), *self._arbiter()]

    def _hook(self) -> Check:
        asked = libvirt_hook.hook_active(self._uri)
        return advice(
            "libvirt hook",
            "libvirt was started before remusdb's hook was there, and does not ask it" if asked is False else "",
            "libvirt starts no VM that another host owns" if asked else "not known from here",
            "restart libvirtd once: VMs run on",
        )

    def _arbiter(self) -> list[Check]:
        """Without a change of its record no session begins."""
        if self._config.arbiter is None:
            return []
        arbiter = Arbiter(self._config.arbiter)
        health = arbiter.health()
        good = "" if health.problem else f"etcd cluster {arbiter.cluster()} accepts changes"
        return [
            required("arbiter", [health.problem] if health.problem else [], good, health.hint),
            advice(
                "arbiter members",
                "; ".join(health.weak),
                "every endpoint answers",
                "bring them back: if one more is lost, no host can go on automatically",
            ),
        ]

    def prepare(self, vm: str) -> list[str]:
        """Edit the persistent definition."""
        calls = BlockingCalls(LOOK_TIMEOUT_S, threads=1)
        try:
            return calls.call(f"VM {vm}", self._prepare, vm)
        finally:
            calls.close()

    def start(self, vm: str) -> None:
        """Boot it."""
        calls = BlockingCalls(LOOK_TIMEOUT_S, threads=1)
        try:
            calls.call(f"start VM {vm}", self._start, vm)
        finally:
            calls.close()

    def _start(self, vm: str) -> None:
        with self._connected() as connection:
            connection.lookupByName(vm).create()

    def guard_starts(self, state_dir: Path) -> bool:
        """By a hook of libvirt's."""
        return libvirt_hook.install(state_dir=state_dir)

    def _gather_vm(self, vm: str) -> tuple[VmInventory, str]:
        with self._connected() as connection:
            return gather_vm(connection, vm), connection.getCapabilities()

    def _compare(self, inventory: Inventory, peer: PeerInventory) -> list[Check]:
        """What the peer's agent says of this VM, beside what this host has."""
        if peer.error or peer.refused:
            return []
        tree, heartbeat_ms = safexml.parse(inventory.vm.xml), self._config.for_vm(inventory.vm.name).heartbeat_ms
        arbiter = Arbiter(self._config.arbiter) if self._config.arbiter else None
        with self._connected() as connection:
            here = gather(connection, tree, self._config.host.name, heartbeat_ms, arbiter)
        return preflight_peer.decide(peer.name, peer.answer, here, tree)

    def _prepare(self, vm: str) -> list[str]:
        with self._connected() as connection:
            _require_apparmor_rule(connection.getCapabilities())
            domain = connection.lookupByName(vm)
            if not domain.isPersistent():
                raise VmError(f"VM {vm} has no persistent definition", hint=f"virsh dumpxml {vm}, then virsh define")
            flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
            xml, changes = prepare(domain.XMLDesc(flags), domain.UUIDString())
            if changes:
                connection.defineXML(xml)
            return changes

    @contextlib.contextmanager
    def _connected(self) -> Iterator[libvirt.virConnect]:
        connection = libvirt.open(self._uri)
        try:
            yield connection
        finally:
            connection.close()

    def _look_at(self, peer: str, probe: Probe) -> PeerInventory:
        """Whether the peer's agent answers and accepts our certificate, and what it has for this VM."""
        at = self._config.peers[peer]
        try:
            inventory = Agent(peer, at.address, at.port, self._config.tls, self._config.protection).probe(probe)
        except RemusError as exc:
            return PeerInventory(peer, error=str(exc), hint=exc.hint)
        if isinstance(inventory, Refuse):
            unwanted = inventory.code == "preflight"
            return PeerInventory(
                peer,
                error="" if unwanted else inventory.reason,
                refused=inventory.reason if unwanted else "",
                hint=inventory.hint,
            )
        offer = inventory.answer.datagrams if inventory.answer else None
        return PeerInventory(
            peer,
            version=inventory.version,
            qemu_version=inventory.qemu_version,
            libvirt_version=inventory.libvirt_version,
            machines=tuple(inventory.machines),
            answer=inventory.answer,
            datagrams=come_through(offer, at.address, at.port) if offer else None,
        )


def _require_apparmor_rule(capabilities: str) -> None:
    """AppArmor would not let QEMU make the socket, and the VM would not start any more."""
    if not confined_without_rule(capabilities):
        return
    raise CannotProtect(
        "AppArmor confines QEMU here: with a private QMP socket the VM would not start again",
        hint=f"first {apparmor.hint(apparmor.MONITOR_RULE)}",
    )
