# SPDX-License-Identifier: Apache-2.0
"""The primary host's daemon: answers the control socket; the supervisor behind it has one worker a protected VM.

Invariant: whatever dies here, no VM is touched and no output is let go; workers go on without the daemon, and the
next one adopts what it finds.
"""

from __future__ import annotations

import logging
import signal
import threading

from msgspec.structs import replace

from remusdb.config import HostConfig
from remusdb.control import ControlServer, ProgressFn
from remusdb.control.api import (
    Checked,
    CheckVm,
    Evacuate,
    Evacuated,
    Fence,
    HostStatus,
    HostVms,
    PastOf,
    Prepare,
    Prepared,
    Protect,
    Reprotect,
    Switched,
    Switchover,
    Unprotect,
    Unprotected,
    console_may,
)
from remusdb.control.codec import Nothing
from remusdb.control.notify import alive_until, notify
from remusdb.control.status import VmStatus
from remusdb.errors import RefusedForSafety, RemusError, VmError
from remusdb.history import History, VmEvents, newest
from remusdb.hooks import Hooks
from remusdb.host.evacuation import evacuate
from remusdb.host.libvirt_view import Inspection, LibvirtInspection
from remusdb.host.outside import Outside
from remusdb.host.reconciler import Reconciler
from remusdb.host.shutdown import mark_stopping, unmark
from remusdb.host.supervisor import Supervisor
from remusdb.reasons import Code, Reason
from remusdb.wording import words

log = logging.getLogger(__name__)

FLUSH_S = 2.0


class HostDaemon:
    """`remusdb host`. Tests hand in another look at libvirt, and another world outside."""

    def __init__(
        self,
        config: HostConfig,
        *,
        inspection: Inspection | None = None,
        outside: Outside | None = None,
    ) -> None:
        self._name = config.host.name
        self._state_dir, self._run_dir = config.host.state_dir, config.host.run_dir
        self._inspection = inspection or LibvirtInspection(config)
        self._outside = outside = outside or Outside()
        self.history = History(config.host.state_dir, Hooks(config.host.hooks_dir))
        self.supervisor = Supervisor(config, self._inspection, self.history, outside)
        self._reconciler = Reconciler(self.supervisor, outside)
        self._stop_asked = threading.Event()
        self._server = ControlServer(
            config.host.run_dir / "host.sock",
            {
                Protect: self._protect,
                Reprotect: self._reprotect,
                Switchover: self._switchover,
                Evacuate: self._evacuate,
                Fence: self._fence,
                Unprotect: self._unprotect,
                HostStatus: self._status,
                CheckVm: self._check,
                Prepare: self._prepare,
                PastOf: self._past,
            },
            group=config.host.console_group,
            group_may=console_may,
        )

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self._stop_asked.set())
        self.start()
        notify("READY=1")
        log.info("host daemon of %s is ready", self._name)
        alive_until(self._stop_asked)
        notify("STOPPING=1")
        self.stop()
        log.info("host daemon ends; VMs are left as they are")

    def start(self) -> None:
        """Open the control socket (which refuses a second daemon) and resume what an earlier one protected."""
        self._server.start()
        unmark(self._run_dir)
        self._install_hook()
        self._reconciler.start()

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
        self._reconciler.stop()
        self.supervisor.stop()
        self.history.flush(FLUSH_S)

    # control operations, each in the thread of its connection

    def _protect(self, asked: Protect, progress: ProgressFn) -> VmStatus:
        return self.supervisor.protect(asked.vm, asked.to, progress)

    def _reprotect(self, asked: Reprotect, progress: ProgressFn) -> VmStatus:
        return self.supervisor.reprotect(asked.vm, asked.to, progress)

    def _switchover(self, asked: Switchover, progress: ProgressFn) -> Switched:
        if asked.to is not None:
            self.supervisor.protect(asked.vm, asked.to, progress)
        return self.supervisor.switchover(asked.vm, progress)

    def _evacuate(self, asked: Evacuate, progress: ProgressFn) -> Evacuated:
        if asked.if_host_stops and not self._outside.host_is_stopping():
            return Evacuated(note="this host is not shutting down")
        if asked.if_host_stops:
            mark_stopping(self._run_dir)
        return evacuate(self.supervisor, progress, host_stops=asked.if_host_stops)

    def _fence(self, asked: Fence, _progress: ProgressFn) -> Nothing:
        managed = self.supervisor.managed(asked.vm)
        with managed.work:
            if managed.state.role != "fenced":
                owner, term = asked.owner, asked.term
                if term <= managed.state.term:
                    raise RefusedForSafety(f"term {term} of host {owner} is not newer than {managed.state.term}")
                self.supervisor.fence(managed, owner, term)
            if not managed.state.quarantined:
                self._reconciler.quarantine(managed)
        return Nothing()

    def _unprotect(self, asked: Unprotect, progress: ProgressFn) -> Unprotected:
        return Unprotected(note=self.supervisor.unprotect(asked.vm, asked.peer_is_dead, progress))

    def _status(self, asked: HostStatus, _progress: ProgressFn) -> HostVms:
        found, warnings, off = self.supervisor.statuses(), [], Reason.of(Code.NOT_RUNNING)
        try:
            known = self._inspection.vms()
            for vm, running in known.items():
                found.setdefault(vm, VmStatus(vm=vm) if running else VmStatus(vm=vm, reason=words(off), why=off))
            found = {vm: one for vm, one in found.items() if one.state != "unprotected" or vm in known}
            found = {vm: replace(one, running=known.get(vm, False)) for vm, one in found.items()}
        except VmError as exc:
            warnings.append(f"VMs that are not protected are not shown: {exc}")
        if asked.vm is not None:
            if asked.vm not in found:
                raise VmError(f"there is no VM {asked.vm} here", hint="see: virsh list --all")
            found = {asked.vm: found[asked.vm]}
        return HostVms(vms=[found[vm] for vm in sorted(found)], warnings=warnings)

    def _check(self, asked: CheckVm, _progress: ProgressFn) -> Checked:
        if asked.to is not None:
            self.supervisor.require_peer(asked.to)
        return Checked(checks=self._inspection.check(asked.vm, asked.to))

    def _prepare(self, asked: Prepare, _progress: ProgressFn) -> Prepared:
        return Prepared(changes=self._inspection.prepare(asked.vm))

    def _past(self, asked: PastOf, _progress: ProgressFn) -> VmEvents:
        return newest(self._state_dir, asked.vm, asked.last)
