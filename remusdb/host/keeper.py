# SPDX-License-Identifier: Apache-2.0
"""Protecting and unprotecting VMs by worker processes, and taking them up again after a restart.

Owns the records of all VMs this host protects or protected, and their saved states. Invariant: no path through
here touches a VM or lets its output go; only a worker does, and only when it was told to.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from remusdb.config import HostConfig
from remusdb.errors import (
    ConfigError,
    Fenced,
    NotProtected,
    PeerRefused,
    PeerUnreachable,
    RefusedForSafety,
    RemusError,
)
from remusdb.host.record import VmRecord
from remusdb.host.state import StateStore
from remusdb.host.worker_link import Progress, WorkerLink

log = logging.getLogger(__name__)

WORKER_ARGV = (sys.executable, "-m", "remusdb.host.worker")
RETRY_S = (1.0, 2.0, 5.0, 10.0)  # between tries to take a held VM up again; the last one repeats
UNPROTECT_TIMEOUT_S = 120.0


class Keeper:
    """All VMs of this host that are or were protected."""

    def __init__(
        self, config: HostConfig, preflight: Callable[[str], None], worker_argv: Sequence[str] = WORKER_ARGV
    ) -> None:
        """`preflight` raises if the VM cannot be protected."""
        self._config = config
        self._preflight = preflight
        self._worker_argv = worker_argv
        self._store = StateStore(config.host.state_dir)
        self._records: dict[str, VmRecord] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        # Workers ask for SIGKILL at the death of the thread that started them: this one lives as long as we do.
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="spawner")

    def start(self) -> None:
        """Take up again what an earlier daemon protected."""
        for vm in self._store.names():
            self._restore(vm)

    def stop(self) -> None:
        """Stop the workers, leaving their VMs as they are: running, with output held."""
        self._stopping.set()
        with self._lock:
            links = [record.link for record in self._records.values() if record.link]
        stoppers = [threading.Thread(target=link.stop) for link in links]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join()
        self._spawner.shutdown(wait=False, cancel_futures=True)

    def statuses(self) -> dict[str, dict[str, Any]]:
        """The status of every VM that has a record."""
        with self._lock:
            records = list(self._records.values())
        return {record.vm: record.status() for record in records}

    def protect(self, vm: str, peer: str, progress: Progress) -> dict[str, Any]:
        """Protect a VM; its status once it is protected."""
        self.require_peer(peer)
        record = self._record(vm)
        if record.held and record.peer != peer:
            raise RefusedForSafety(
                f"VM {vm} was protected to {record.peer}, which may have taken it over",
                hint=f"protect it to {record.peer} again, or end that first: remusdb unprotect {vm}",
            )
        return self._protect(record, peer, progress)

    def unprotect(self, vm: str, peer_is_dead: bool, progress: Progress) -> None:
        """End a VM's protection in good order and forget it."""
        with self._lock:
            record = self._records.get(vm)
        if record is None or (record.link is None and record.kept is None):
            raise NotProtected(f"VM {vm} is not protected")
        link = record.link
        if link:
            link.request("unprotect", {"peer_is_dead": peer_is_dead}, progress, UNPROTECT_TIMEOUT_S)
        elif record.wired:
            link = self._take_out(record, peer_is_dead, progress)
        self._store.forget(vm)
        record.kept = None
        with self._lock:
            self._records.pop(vm, None)
        if link:
            link.stop()
        log.info("unprotected", extra={"vm": vm})

    def require_peer(self, peer: str) -> None:
        """Refuse a peer that host.toml does not name."""
        if peer not in self._config.peers:
            names = ", ".join(sorted(self._config.peers)) or "none"
            raise ConfigError(f"unknown peer `{peer}`", hint=f"peers in host.toml: {names}")

    def _protect(self, record: VmRecord, peer: str, progress: Progress) -> dict[str, Any]:
        link = self._worker(record, peer)
        try:
            self.require_peer(peer)  # here as well: a peer that was saved may be gone from the file
            if not record.wired:  # a VM with the gate still in has passed already
                self._preflight(record.vm)
            self._spawner.submit(link.spawn).result()
            told = link.request("start", self._order(record, peer), progress)
        except RemusError as exc:
            self._give_up(record, link, exc)
            raise
        record.on_status(told)
        log.info("protected to %s", peer, extra={"vm": record.vm})
        return record.status()

    def _take_out(self, record: VmRecord, peer_is_dead: bool, progress: Progress) -> WorkerLink:
        """An earlier worker left wiring behind: a new one takes it out, without protecting first."""
        peer = record.peer or ""
        self.require_peer(peer)
        link = self._worker(record, peer)
        args: dict[str, Any] = {"peer_is_dead": peer_is_dead, "start": self._order(record, peer)}
        try:
            self._spawner.submit(link.spawn).result()
            link.request("unprotect", args, progress, UNPROTECT_TIMEOUT_S)
        except RemusError as exc:
            self._give_up(record, link, exc)
            raise
        return link

    def _give_up(self, record: VmRecord, link: WorkerLink, exc: RemusError) -> None:
        if link.waited_for:
            return  # an unprotect came in while `start` was under way: the worker is still wanted
        record.settle(link, "fenced" if isinstance(exc, Fenced) else "failed", str(exc))
        link.stop()
        record.drop_link(link)

    def _worker(self, record: VmRecord, peer: str) -> WorkerLink:
        if self._stopping.is_set():
            raise RemusError("the host daemon is stopping")
        old = record.link
        if old and record.over and not old.waited_for:
            old.stop()
            record.drop_link(old)
        link = WorkerLink(record.vm, self._worker_argv, record, self._lock_file(record.vm))
        record.claim(link, peer)
        return link

    def _record(self, vm: str) -> VmRecord:
        with self._lock:
            record = self._records.get(vm)
            if record is None or (record.kept is None and record.link is None):
                # Read again: a file that could not be read may have been moved away since.
                record = self._records[vm] = VmRecord(vm, self._store, self._store.load(vm))
            return record

    def _restore(self, vm: str) -> None:
        try:
            record = VmRecord(vm, self._store, self._store.load(vm))
        except RemusError as exc:
            log.error("%s", exc, extra={"vm": vm})
            record = VmRecord(vm, self._store)
            record.settle(None, "failed", str(exc))
        with self._lock:
            self._records[vm] = record
        if record.held:
            record.settle(None, "held", "host daemon was restarted")
            threading.Thread(target=self._take_up, args=(record,), name=f"restore-{vm}", daemon=True).start()
        elif record.kept:
            fenced = record.kept.saved.get("role") == "fenced"
            record.settle(None, "fenced" if fenced else "failed", str(record.kept.saved.get("reason", "it ended")))

    def _take_up(self, record: VmRecord) -> None:
        """Protect a held VM again; go on trying for as long as only the way to the peer is missing."""
        tries = 0
        while record.held and record.peer and not self._stopping.is_set():
            try:
                self._protect(record, record.peer, _unheard)
                return
            except RemusError as exc:
                log.warning("not protected again yet: %s", exc, extra={"vm": record.vm})
                if isinstance(exc, PeerRefused) or not isinstance(exc, PeerUnreachable):
                    return
                record.settle(None, "held", f"host daemon was restarted; last try: {exc}")
            self._stopping.wait(RETRY_S[min(tries, len(RETRY_S) - 1)])
            tries += 1

    def _lock_file(self, vm: str) -> Path:
        return self._config.host.run_dir / f"worker-{quote(vm, safe='')}.lock"

    def _order(self, record: VmRecord, peer: str) -> dict[str, Any]:
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


def _unheard(_progress: dict[str, Any]) -> None:
    """Progress that nobody asked for."""
