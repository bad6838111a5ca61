# SPDX-License-Identifier: Apache-2.0
"""What the daemon asks of libvirt itself, outside any worker: the list of VMs, `check` and `prepare`.

Every question has a deadline: a hung libvirtd must not hang status.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any, Protocol

import libvirt

from remusdb.config import HostConfig
from remusdb.errors import VmError
from remusdb.vm.deadline import Deadline
from remusdb.vm.domain import connect

LIST_TIMEOUT_S = 2.0


class Inspection(Protocol):
    """A look at this host's VMs."""

    def vms(self) -> dict[str, bool]:
        """Name -> running, of every VM libvirt knows."""

    def check(self, vm: str, peer: str | None) -> list[dict[str, Any]]:
        """The preflight's checks, as the control socket carries them."""

    def prepare(self, vm: str) -> list[str]:
        """Edit the VM's persistent definition; what was changed."""


class LibvirtInspection:
    """The real one."""

    def __init__(self, config: HostConfig) -> None:
        self._config = config
        self._uri = config.host.libvirt_uri
        self._deadline = Deadline(LIST_TIMEOUT_S, threads=2)  # one for the question, one for connect() inside it
        self._lock = threading.Lock()
        self._pending: Future[dict[str, bool]] | None = None
        self._connection: libvirt.virConnect | None = None

    def vms(self) -> dict[str, bool]:
        """Name -> running. VmError when libvirt is not there, or does not answer in time."""
        with self._lock:  # a question that hangs is waited for again, not asked again
            if self._pending is None or self._pending.done():
                self._pending = self._deadline.start(self._ask)
            pending = self._pending
        return self._deadline.finish(pending, "list of VMs")

    def _ask(self) -> dict[str, bool]:
        try:
            if self._connection is None or not self._connection.isAlive():
                self._connection = connect(self._uri, self._deadline)
            return {domain.name(): bool(domain.isActive()) for domain in self._connection.listAllDomains()}
        except (libvirt.libvirtError, VmError):
            self._connection = None
            raise

    def check(self, vm: str, peer: str | None) -> list[dict[str, Any]]:
        """Not written yet."""
        raise VmError("check is not there yet")

    def prepare(self, vm: str) -> list[str]:
        """Not written yet."""
        raise VmError("prepare is not there yet")
