# SPDX-License-Identifier: Apache-2.0
"""Starting and stopping worker processes, and what each is told at its start."""

from __future__ import annotations

import threading
from pathlib import Path

from remusdb.config import HostConfig
from remusdb.errors import RemusError
from remusdb.host.managed_vm import VmRecord
from remusdb.host.outside import Outside
from remusdb.host.worker_process import WorkerLink
from remusdb.names import socket_stem
from remusdb.worker.spec import Order, PeerAddress


class Workers:
    """The worker processes of this daemon."""

    def __init__(self, config: HostConfig, outside: Outside) -> None:
        self._config = config
        self._outside = outside
        self.stopping = threading.Event()

    def link(self, record: VmRecord, peer: str, *, leaving: bool = False) -> WorkerLink:
        """A worker that is this VM's from now on, not yet spawned; refused as `VmRecord.claim` says."""
        if self.stopping.is_set():
            raise RemusError("the host daemon is stopping")
        old = record.link
        if old and record.over and not old.waited_for:
            old.stop()
            record.drop_link(old)
        link = WorkerLink(record.vm, self._outside, record, self._lock_file(record.vm))
        record.claim(link, peer, leaving=leaving)
        return link

    def adopt(self, record: VmRecord) -> bool:
        """Take up the worker of an earlier daemon, if there is one."""
        link = WorkerLink(record.vm, self._outside, record, self._lock_file(record.vm))
        found = link.adopt()
        if found:
            record.adopted(link)
            link.follow()
        return found

    def order(self, record: VmRecord, peer: str, asked: bool = True) -> Order:
        """All that a worker must know of its VM. `asked`: by somebody who waits for the answer."""
        config = self._config
        return Order(
            vm=record.vm,
            host=config.host.name,
            libvirt_uri=config.host.libvirt_uri,
            run_dir=config.host.run_dir,
            state_dir=config.host.state_dir,
            hooks_dir=config.host.hooks_dir,
            peer=PeerAddress(peer, config.peers[peer].address, config.peers[peer].port),
            tls=config.tls,
            protection=config.for_vm(record.vm),
            arbiter=config.arbiter,
            asked=asked,
        )

    def _lock_file(self, vm: str) -> Path:
        folder = self._config.host.run_dir
        return folder / f"worker-{socket_stem(folder, 'worker-', vm, '.sock')}.lock"
