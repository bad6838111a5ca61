# SPDX-License-Identifier: Apache-2.0
"""Starting and stopping worker processes, and what each is told at its start."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from remusdb.config import HostConfig
from remusdb.errors import RemusError
from remusdb.host.record import VmRecord
from remusdb.host.worker_link import WorkerLink

WORKER_ARGV = (sys.executable, "-m", "remusdb.host.worker")


class Workers:
    """The worker processes of this daemon."""

    def __init__(self, config: HostConfig, argv: Sequence[str]) -> None:
        self._config = config
        self._argv = argv
        self.stopping = threading.Event()
        # Workers ask for SIGKILL at the death of the thread that started them: this one lives as long as we do.
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="spawner")

    def link(self, record: VmRecord, peer: str) -> WorkerLink:
        """A worker that is this VM's from now on, not yet spawned; refused while the VM has another."""
        if self.stopping.is_set():
            raise RemusError("the host daemon is stopping")
        old = record.link
        if old and record.over and not old.waited_for:
            old.stop()
            record.drop_link(old)
        link = WorkerLink(record.vm, self._argv, record, self._lock_file(record.vm))
        record.claim(link, peer)
        return link

    def spawn(self, link: WorkerLink) -> None:
        """Start the worker's process."""
        self._spawner.submit(link.spawn).result()

    def order(self, record: VmRecord, peer: str) -> dict[str, Any]:
        """All that a worker must know of its VM, as JSON has it."""
        config = self._config
        order = {
            "vm": record.vm,
            "host": config.host.name,
            "libvirt_uri": config.host.libvirt_uri,
            "run_dir": config.host.run_dir,
            "state_dir": config.host.state_dir,
            "peer": {"name": peer, "address": config.peers[peer].address, "port": config.peers[peer].port},
            "tls": config.tls,
            "protection": config.for_vm(record.vm),
            "previous": record.kept.saved if record.kept else None,
        }
        plain: dict[str, Any] = msgspec.to_builtins(order, enc_hook=str)
        return plain

    def stop(self, links: Sequence[WorkerLink]) -> None:
        """Stop these, all at once, and start no more."""
        self.stopping.set()
        stoppers = [threading.Thread(target=link.stop) for link in links]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join()
        self._spawner.shutdown(wait=False, cancel_futures=True)

    def _lock_file(self, vm: str) -> Path:
        return self._config.host.run_dir / f"worker-{quote(vm, safe='')}.lock"
