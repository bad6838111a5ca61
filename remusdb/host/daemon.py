# SPDX-License-Identifier: Apache-2.0
"""The primary host's daemon: answers the control socket; the keeper behind it has one worker a protected VM.

Invariant: whatever dies here, no VM is touched and no output is let go; workers go on without the daemon, and the
next one takes up what it finds.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Sequence
from typing import Any

from remusdb.config import HostConfig
from remusdb.control import ControlServer, ProgressFn
from remusdb.control.notify import notify
from remusdb.core.terms import TERM_MAX
from remusdb.errors import RefusedForSafety, RemusError, UsageError, VmError
from remusdb.history import History
from remusdb.hooks import Hooks
from remusdb.host.evacuation import evacuate
from remusdb.host.libvirt_view import Inspection, LibvirtInspection
from remusdb.host.reconciler import Tender
from remusdb.host.shutdown import host_is_stopping, mark_stopping, unmark
from remusdb.host.status import VmStatus
from remusdb.host.supervisor import Keeper
from remusdb.host.workers import WORKER_ARGV
from remusdb.names import require_name

log = logging.getLogger(__name__)

FLUSH_S = 2.0


class HostDaemon:
    """`remusdb host`. Tests hand in another worker and another look at libvirt."""

    def __init__(
        self,
        config: HostConfig,
        *,
        worker_argv: Sequence[str] = WORKER_ARGV,
        inspection: Inspection | None = None,
    ) -> None:
        self._name = config.host.name
        self._state_dir, self._run_dir = config.host.state_dir, config.host.run_dir
        self._inspection = inspection or LibvirtInspection(config)
        self._history = History(config.host.state_dir, Hooks(config.host.hooks_dir))
        self._keeper = Keeper(config, self._inspection, self._history, worker_argv)
        self._tender = Tender(self._keeper)
        self._stop_asked = threading.Event()
        self._server = ControlServer(
            config.host.run_dir / "host.sock",
            {
                "protect": self._protect,
                "reprotect": self._reprotect,
                "switchover": self._switchover,
                "evacuate": self._evacuate,
                "fence": self._fence,
                "unprotect": self._unprotect,
                "status": self._status,
                "check": self._check,
                "prepare": self._prepare,
            },
        )

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self._stop_asked.set())
        self.start()
        notify("READY=1")
        log.info("host daemon of %s is ready", self._name)
        self._stop_asked.wait()
        notify("STOPPING=1")
        self.stop()
        log.info("host daemon ends; VMs are left as they are")

    def start(self) -> None:
        """Open the control socket (which refuses a second daemon) and take up what an earlier one protected."""
        self._server.start()
        unmark(self._run_dir)
        self._install_hook()
        self._tender.start()

    def _install_hook(self) -> None:
        """Have libvirt refuse to start a VM that another host owns. Protection does not depend on it."""
        try:
            if self._inspection.guard_starts(self._state_dir):
                log.warning("libvirt asks our hook only after its next start: restart libvirtd, VMs run on")
        except (RemusError, OSError) as exc:
            log.warning("libvirt's hook is not installed: %s", exc)

    def stop(self) -> None:
        """End; workers go on by themselves, and the next daemon adopts them."""
        self._server.close()
        self._tender.stop()
        self._keeper.stop()
        self._history.flush(FLUSH_S)

    # control operations, each in the thread of its connection

    def _protect(self, args: dict[str, Any], progress: ProgressFn) -> dict[str, Any]:
        return self._keeper.protect(_text(args, "vm"), _text(args, "to"), progress)

    def _reprotect(self, args: dict[str, Any], progress: ProgressFn) -> dict[str, Any]:
        return self._keeper.reprotect(_text(args, "vm"), _text(args, "to"), progress)

    def _switchover(self, args: dict[str, Any], progress: ProgressFn) -> dict[str, Any]:
        vm = _text(args, "vm")
        if args.get("to") is not None:
            self._keeper.protect(vm, _text(args, "to"), progress)
        return self._keeper.switchover(vm, progress)

    def _evacuate(self, args: dict[str, Any], progress: ProgressFn) -> dict[str, Any]:
        host_stops = args.get("if_host_stops", False)
        if not isinstance(host_stops, bool):
            raise UsageError("`if_host_stops` is true or false")
        if host_stops and not host_is_stopping():
            return {"moved": [], "stayed": [], "note": "this host is not shutting down"}
        if host_stops:
            mark_stopping(self._run_dir)
        return evacuate(self._keeper, progress, host_stops=host_stops)

    def _fence(self, args: dict[str, Any], _progress: ProgressFn) -> dict[str, Any]:
        """Asked by this machine's agent: another host protects the VM to here, in a newer term than we have."""
        vm, owner, term = _text(args, "vm"), _text(args, "owner"), args.get("term")
        if not isinstance(term, int) or isinstance(term, bool) or not 0 <= term <= TERM_MAX:
            raise UsageError(f"`term` is a number from 0 to {TERM_MAX}")
        record = self._keeper.record(vm)
        with record.work:
            if record.state.role != "fenced":
                if term <= record.state.term:
                    raise RefusedForSafety(f"term {term} of host {owner} is not newer than {record.state.term}")
                self._keeper.fence(record, owner, term, f"host {owner} owns the VM since term {term}")
            if not record.state.put_away:
                self._tender.put_away(record)
        return {}

    def _unprotect(self, args: dict[str, Any], progress: ProgressFn) -> dict[str, Any]:
        peer_is_dead = args.get("peer_is_dead", False)
        if not isinstance(peer_is_dead, bool):
            raise UsageError("`peer_is_dead` is true or false")
        note = self._keeper.unprotect(_text(args, "vm"), peer_is_dead, progress)
        return {"note": note} if note else {}

    def _status(self, args: dict[str, Any], _progress: ProgressFn) -> dict[str, Any]:
        wanted = None if args.get("vm") is None else _text(args, "vm")
        found, warnings = self._keeper.statuses(), []
        try:
            known = self._inspection.vms()
            for vm, running in known.items():
                found.setdefault(vm, VmStatus(vm=vm, reason="" if running else "not running").to_dict())
            found = {vm: one for vm, one in found.items() if one["state"] != "unprotected" or vm in known}
        except VmError as exc:
            warnings.append(f"VMs that are not protected are not shown: {exc}")
        if wanted is not None:
            if wanted not in found:
                raise VmError(f"there is no VM {wanted} here", hint="see: virsh list --all")
            found = {wanted: found[wanted]}
        return {"vms": [found[vm] for vm in sorted(found)], "warnings": warnings}

    def _check(self, args: dict[str, Any], _progress: ProgressFn) -> dict[str, Any]:
        peer = None if args.get("to") is None else _text(args, "to")
        if peer is not None:
            self._keeper.require_peer(peer)
        return {"checks": self._inspection.check(_text(args, "vm"), peer)}

    def _prepare(self, args: dict[str, Any], _progress: ProgressFn) -> dict[str, Any]:
        return {"changes": self._inspection.prepare(_text(args, "vm"))}


def _text(args: dict[str, Any], key: str) -> str:
    """A name from the client."""
    try:
        return require_name(args.get(key))
    except UsageError as exc:
        raise UsageError(f"`{key}`: {exc}") from exc
