# SPDX-License-Identifier: Apache-2.0
"""A host daemon whose workers and libvirt are made up, and how to ask it."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

from remusdb.config import HostConfig
from remusdb.control import LineChannel, ProgressFn, Request, call
from remusdb.control.api import HostStatus, Protect, Unprotect
from remusdb.control.codec import Failed, Reply, read_answer
from remusdb.control.status import VmStatus
from remusdb.core.messages import Standing
from remusdb.errors import (
    PeerUnreachable,
    VmError,
)
from remusdb.history import read as read_history
from remusdb.host.daemon import HostDaemon
from remusdb.names import VmName
from remusdb.preflight.checks import Check
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

    def check(self, vm: str, peer: str | None) -> list[Check]:
        return [Check("kernel", True, "required", f"{vm} {peer}")]

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

    def ask(self, request: Request[Reply], progress: ProgressFn | None = None) -> Reply:
        return call(self.socket, request, progress, timeout_s=20)

    def say(self, **line: Any) -> None:
        """A line as anybody may write one; an error that it is answered with is raised."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(self.socket))
            channel = LineChannel(sock)
            channel.send(line)
            answer = read_answer(channel.line() or b"")
            if isinstance(answer, Failed):
                raise answer.error()

    def protect(self, vm: str, to: str = "beta") -> VmStatus:
        return self.ask(Protect(vm=VmName(vm), to=to))

    def unprotect(self, vm: str, *, peer_is_dead: bool = False) -> str:
        return self.ask(Unprotect(vm=VmName(vm), peer_is_dead=peer_is_dead)).note

    def status(self, vm: str) -> VmStatus:
        return self.ask(HostStatus(vm=vm)).vms[0]

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
