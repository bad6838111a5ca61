# SPDX-License-Identifier: Apache-2.0
"""Protecting and unprotecting VMs by worker processes, and taking them up again after a restart.

Owns the records of all VMs this host protects or protected, and their saved states. Invariant: no path through
here touches a VM or lets its output go; only a worker does, and only when it was told to.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

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
    VmError,
)
from remusdb.host.inspection import Inspection
from remusdb.host.record import VmRecord
from remusdb.host.state import StateStore
from remusdb.host.worker_link import Progress, WorkerLink
from remusdb.host.workers import WORKER_ARGV, Workers
from remusdb.vm.checks import Check
from remusdb.vm.preflight import require

log = logging.getLogger(__name__)

RETRY_S = (1.0, 2.0, 5.0, 10.0)  # between tries to take a held VM up again; the last one repeats
UNPROTECT_TIMEOUT_S = 120.0


class Keeper:
    """All VMs of this host that are or were protected."""

    def __init__(self, config: HostConfig, inspection: Inspection, worker_argv: Sequence[str] = WORKER_ARGV) -> None:
        self._config = config
        self._inspection = inspection
        self._workers = Workers(config, worker_argv)
        self._store = StateStore(config.host.state_dir)
        self._records: dict[str, VmRecord] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Take up again what an earlier daemon protected."""
        for vm in self._store.names():
            self._restore(vm)

    def stop(self) -> None:
        """Stop the workers, leaving their VMs as they are: running, with output held."""
        self._workers.stopping.set()  # first, so that none is added behind our back
        with self._lock:
            links = [record.link for record in self._records.values() if record.link]
        self._workers.stop(links)

    def statuses(self) -> dict[str, dict[str, Any]]:
        """The status of every VM that has a record."""
        with self._lock:
            records = list(self._records.values())
        return {record.vm: record.status() for record in records}

    def protect(self, vm: str, peer: str, progress: Progress) -> dict[str, Any]:
        """Protect a VM; its status once it is protected."""
        self.require_peer(peer)
        record = self._record(vm)
        if record.wired and record.peer != peer:
            raise RefusedForSafety(
                f"VM {vm} was protected to {record.peer}, which may have taken it over",
                hint=f"protect it to {record.peer} again, or end that first: remusdb unprotect {vm}",
            )
        return self._protect(record, peer, progress)

    def unprotect(self, vm: str, peer_is_dead: bool, progress: Progress) -> str:
        """End a VM's protection and forget it; what is worth a word about how it ended."""
        with self._lock:
            record = self._records.get(vm)
        if record is None or (record.link is None and record.kept is None):
            raise NotProtected(f"VM {vm} is not protected")
        link, note = record.link, ""
        try:
            if link:
                link.request("unprotect", {"peer_is_dead": peer_is_dead}, progress, UNPROTECT_TIMEOUT_S)
            elif record.wired:
                link = self._take_out(record, peer_is_dead, progress)
        except RemusError as exc:
            if not self._is_off(vm):
                raise
            # No VM, no output: whatever runs elsewhere, nothing of it can be heard from here.
            note = f"{vm} does not run here, so it was only forgotten ({exc})"
            log.warning("%s", note, extra={"vm": vm})
        self._forget(record)
        if link:
            link.stop()
        log.info("unprotected", extra={"vm": vm})
        return note

    def require_peer(self, peer: str) -> None:
        """Refuse a peer that host.toml does not name."""
        if peer not in self._config.peers:
            names = ", ".join(sorted(self._config.peers)) or "none"
            raise ConfigError(f"unknown peer `{peer}`", hint=f"peers in host.toml: {names}")

    def _protect(self, record: VmRecord, peer: str, progress: Progress) -> dict[str, Any]:
        link = self._workers.link(record, peer)
        try:
            self.require_peer(peer)  # here as well: a peer that was saved may be gone from the file
            if not record.wired:  # a VM with the gate still in has passed already
                self._preflight(record.vm)
            self._workers.spawn(link)
            link.request("start", self._workers.order(record, peer), progress)
        except RemusError as exc:
            self._give_up(record, link, exc)
            raise
        log.info("protected to %s", peer, extra={"vm": record.vm})
        return record.status()

    def _take_out(self, record: VmRecord, peer_is_dead: bool, progress: Progress) -> WorkerLink:
        """An earlier worker left wiring behind: a new one takes it out, without protecting first."""
        peer = record.peer or ""
        self.require_peer(peer)
        link = self._workers.link(record, peer)
        args: dict[str, Any] = {"peer_is_dead": peer_is_dead, "start": self._workers.order(record, peer)}
        try:
            self._workers.spawn(link)
            link.request("unprotect", args, progress, UNPROTECT_TIMEOUT_S)
        except RemusError as exc:
            self._give_up(record, link, exc)
            raise
        return link

    def _forget(self, record: VmRecord) -> None:
        self._store.forget(record.vm)
        record.kept = None
        with self._lock:
            self._records.pop(record.vm, None)

    def _is_off(self, vm: str) -> bool:
        """Whether libvirt is sure that the VM does not run."""
        try:
            return not self._inspection.vms().get(vm, False)
        except VmError:
            return False

    def _preflight(self, vm: str) -> None:
        checks = self._inspection.check(vm, None)  # the peer is asked by the worker, right after
        require(vm, [msgspec.convert(check, Check) for check in checks])

    def _give_up(self, record: VmRecord, link: WorkerLink, exc: RemusError) -> None:
        if link.waited_for:
            return  # an unprotect came in while `start` was under way: the worker is still wanted
        fenced = isinstance(exc, Fenced) or record.fenced
        record.settle(link, "fenced" if fenced else "failed", str(exc))
        link.stop()
        record.drop_link(link)

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
            record.settle(
                None, "fenced" if record.fenced else "failed", str(record.kept.saved.get("reason", "it ended"))
            )

    def _take_up(self, record: VmRecord) -> None:
        """Protect a held VM again; go on trying for as long as only the way to the peer is missing."""
        tries = 0
        while record.held and record.peer and not self._workers.stopping.is_set():
            try:
                self._protect(record, record.peer, _unheard)
                return
            except RemusError as exc:
                log.warning("not protected again yet: %s", exc, extra={"vm": record.vm})
                if isinstance(exc, PeerRefused) or not isinstance(exc, PeerUnreachable):
                    return
                record.settle(None, "held", f"host daemon was restarted; last try: {exc}")
            self._workers.stopping.wait(RETRY_S[min(tries, len(RETRY_S) - 1)])
            tries += 1


def _unheard(_progress: dict[str, Any]) -> None:
    """Progress that nobody asked for."""
