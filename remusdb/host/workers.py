# SPDX-License-Identifier: Apache-2.0
"""Starting and stopping worker processes, and what each is told at its start."""

from __future__ import annotations

import threading
from pathlib import Path

from remusdb.config import HostConfig
from remusdb.errors import RemusError
from remusdb.host.managed_vm import ManagedVm
from remusdb.host.outside import Outside
from remusdb.host.worker_process import WorkerLink
from remusdb.names import socket_stem
from remusdb.worker.spec import PeerAddress, ProtectionSpec


class Workers:
    """The worker processes of this daemon."""

    def __init__(self, config: HostConfig, outside: Outside) -> None:
        self._config = config
        self._outside = outside
        self.stopping = threading.Event()

    def link(self, managed: ManagedVm, peer: str, *, leaving: bool = False) -> WorkerLink:
        """A worker that is this VM's from now on, not yet spawned; refused as `ManagedVm.claim` says."""
        if self.stopping.is_set():
            raise RemusError("the host daemon is stopping")
        old = managed.link
        if old and managed.over and not old.waited_for:
            old.stop()
            managed.drop_link(old)
        link = WorkerLink(managed.vm, self._outside, managed, self._lock_file(managed.vm))
        managed.claim(link, peer, leaving=leaving)
        return link

    def adopt(self, managed: ManagedVm) -> bool:
        """Adopt the worker of an earlier daemon, if there is one."""
        link = WorkerLink(managed.vm, self._outside, managed, self._lock_file(managed.vm))
        found = link.adopt()
        if found:
            managed.adopted(link)
            link.follow()
        return found

    def spec(self, managed: ManagedVm, peer: str, asked: bool = True) -> ProtectionSpec:
        """All that a worker must know of its VM. `asked`: by somebody who waits for the answer."""
        config = self._config
        return ProtectionSpec(
            vm=managed.vm,
            host=config.host.name,
            libvirt_uri=config.host.libvirt_uri,
            run_dir=config.host.run_dir,
            state_dir=config.host.state_dir,
            hooks_dir=config.host.hooks_dir,
            peer=PeerAddress(peer, config.peers[peer].address, config.peers[peer].port),
            tls=config.tls,
            protection=config.for_vm(managed.vm),
            arbiter=config.arbiter,
            asked=asked,
        )

    def _lock_file(self, vm: str) -> Path:
        folder = self._config.host.run_dir
        return folder / f"worker-{socket_stem(folder, 'worker-', vm, '.sock')}.lock"
