# SPDX-License-Identifier: Apache-2.0
"""A host daemon whose workers and libvirt are made up, and how to ask it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from remusdb.config import HostConfig
from remusdb.control import call
from remusdb.core.messages import Standing
from remusdb.errors import (
    PeerUnreachable,
    VmError,
)
from remusdb.history import read as read_history
from remusdb.host.daemon import HostDaemon
from remusdb.names import VmName
from remusdb.state import StateStore
from remusdb.worker.spec import Order
from tests.waiting import eventually

WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


class NoLibvirt:
    """An inspection with VMs of its own."""

    def __init__(self) -> None:
        self.known = {"db1": True, "web": True, "spare": False}

    def vms(self) -> dict[str, bool]:
        return dict(self.known)

    def check(self, vm: str, peer: str | None) -> list[dict[str, Any]]:
        return [{"name": "kernel", "ok": True, "level": "required", "detail": f"{vm} {peer}", "hint": ""}]

    def prepare(self, vm: str) -> list[str]:
        return [f"edited {vm}"]

    def start(self, vm: str) -> None:
        self.known[vm] = True

    def guard_starts(self, state_dir: Path) -> bool:
        return False


class DeadLibvirt(NoLibvirt):
    """An inspection whose libvirtd is down."""

    def vms(self) -> dict[str, bool]:
        raise VmError("libvirt at qemu:///system: no socket")


def ask_standing(order: Order, term: int) -> Standing:
    """The other host's word: it owns what is called `taken`, and keeps a standby of all else."""
    if order.vm == "taken":
        return Standing(VmName(order.vm), term + 1, order.peer.name, "promoted", "it took over")
    if order.vm == "quiet":
        raise PeerUnreachable("no route")
    if order.vm == "gone":
        return Standing(VmName(order.vm), term, order.host, "none", "the agent was restarted")
    return Standing(VmName(order.vm), term, order.host, "standby", "follows")


class Running:
    """A daemon and how to ask it."""

    def __init__(
        self, config: HostConfig, inspection: NoLibvirt | None = None, worker_argv: tuple[str, ...] = WORKER
    ) -> None:
        self.libvirt = inspection or NoLibvirt()
        self.daemon = HostDaemon(config, worker_argv=worker_argv, inspection=self.libvirt)
        self.socket = config.host.run_dir / "host.sock"
        config.host.state_dir.mkdir(parents=True, exist_ok=True)
        self.daemon.start()

    def ask(self, op: str, **args: Any) -> dict[str, Any]:
        return call(self.socket, op, args, timeout_s=20)

    def status(self, vm: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("status", vm=vm)["vms"][0]
        return found

    def worker_pid(self, vm: str) -> int:
        link = self.daemon._keeper.record(vm).link
        assert link is not None
        return link.pid


wait_for = eventually


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def put(config: HostConfig, vm: str, **state: Any) -> None:
    """What an earlier daemon left."""
    StateStore(config.host.state_dir).update(vm, **state)


def history(daemon: Running, config: HostConfig, vm: str) -> list[Any]:
    daemon.daemon._history.flush(5)
    return read_history(config.host.state_dir, vm)
