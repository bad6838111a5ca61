# SPDX-License-Identifier: Apache-2.0
"""The primary host's daemon: answers the control socket; the keeper behind it has one worker a protected VM.

Invariant: whatever dies here, no VM is touched and no output is let go; a VM whose output is held is said to be,
and is taken up again at the next start.
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
from remusdb.errors import UsageError, VmError
from remusdb.host.inspection import Inspection, LibvirtInspection
from remusdb.host.keeper import Keeper
from remusdb.host.status import VmStatus
from remusdb.host.workers import WORKER_ARGV

log = logging.getLogger(__name__)


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
        self._inspection = inspection or LibvirtInspection(config)
        self._keeper = Keeper(config, self._inspection, worker_argv)
        self._stop_asked = threading.Event()
        self._server = ControlServer(
            config.host.run_dir / "host.sock",
            {
                "protect": self._protect,
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
        self._keeper.start()

    def stop(self) -> None:
        """Stop the workers, leaving their VMs as they are: running, with output held."""
        self._server.close()
        self._keeper.stop()

    # control operations, each in the thread of its connection

    def _protect(self, args: dict[str, Any], progress: ProgressFn) -> dict[str, Any]:
        return self._keeper.protect(_text(args, "vm"), _text(args, "to"), progress)

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
            for vm, running in self._inspection.vms().items():
                found.setdefault(vm, VmStatus(vm=vm, reason="" if running else "not running").to_dict())
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
    """A name from the client; a VM's name becomes part of file names."""
    value = args.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= 200 or "/" in value or not value.isprintable():
        raise UsageError(f"`{key}` is a name: text of 1 to 200 printable characters without a slash")
    return value
