# SPDX-License-Identifier: Apache-2.0
"""A host daemon whose workers and libvirt are made up, and how to ask it."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any, Self

import msgspec

from remusdb.config import HostConfig
from remusdb.control import LineChannel, ProgressFn, Request, call
from remusdb.control.api import HostStatus, Protect, Unprotect
from remusdb.control.codec import Failed, Reply, read_answer
from remusdb.control.status import VmStatus
from remusdb.core.messages import Standing
from remusdb.durable import write_file
from remusdb.errors import PeerUnreachable, VmError
from remusdb.history import read as read_history
from remusdb.host.daemon import HostDaemon
from remusdb.host.outside import Outside, Timing
from remusdb.host.quarantine.retire import Quarantined
from remusdb.names import VmName
from remusdb.preflight.checks import Check
from remusdb.state import StateStore, VmState
from remusdb.worker.spec import ProtectionSpec
from tests.unit import fake_worker

FAST = Timing(look_s=0.02, ask_s=(0.05,), retry_s=(0.05,))


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


class OtherHosts:
    """What the agents of the other hosts say of every VM: that they keep its standby, unless the test has it otherwise.

    Per host: `role` is what it is to the VM, `owner` whom it takes for its owner (empty: nobody that is known; None:
    this host), `ahead` by how many terms it is ahead of this one.
    """

    def __init__(self) -> None:
        self.silent: set[str] = set()
        self.asked: list[str] = []
        self._said: dict[str, tuple[str, str | None, int, str]] = {}

    def say(self, host: str, role: str, *, owner: str | None = None, ahead: int = 0, uuid: str = "") -> None:
        self._said[host] = role, owner, ahead, uuid

    def ask(self, spec: ProtectionSpec, term: int) -> Standing:
        host = spec.peer.name
        self.asked.append(host)
        if host in self.silent:
            raise PeerUnreachable("no route")
        role, owner, ahead, uuid = self._said.get(host, ("standby", None, 0, ""))
        owner = spec.host if owner is None else owner
        return Standing(VmName(spec.vm), term + ahead, owner, role, "because", uuid)


class Quarantines:
    """In place of what destroys a VM whose owner is another host."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failure: Exception | None = None

    def __call__(self, _uri: str, state: VmState, policy: str, *_folders: Path) -> Quarantined:
        self.done.append(f"{state.vm} {state.role} {policy}")
        if self.failure is not None:
            raise self.failure
        return Quarantined({"vda": "/kept/vda.raw"}, {"vda": "raw"}, None, "disks kept: vda")


class Running:
    """A daemon, the world that is made up around it, and how to ask it. `outside`: what else is another than usual."""

    def __init__(
        self,
        config: HostConfig,
        inspection: NoLibvirt | None = None,
        others: OtherHosts | None = None,
        **outside: Any,
    ) -> None:
        self.libvirt = inspection or NoLibvirt()
        self.others, self.quarantines = others or OtherHosts(), Quarantines()
        self.shut: list[tuple[str, list[str]]] = []
        made_up: dict[str, Any] = {
            "worker_argv": worker_argv(config),
            "timing": FAST,
            "ask": self.others.ask,
            "quarantine": self.quarantines,
            "shut_others": lambda vm, gated: self.shut.append((vm, gated)),
        }
        self.daemon = HostDaemon(config, inspection=self.libvirt, outside=Outside(**made_up | outside))
        self.socket = config.host.run_dir / "host.sock"
        config.host.state_dir.mkdir(parents=True, exist_ok=True)
        self.daemon.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.daemon.stop()

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
        link = self.daemon.supervisor.managed(vm).link
        assert link is not None
        return link.pid


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def scripts(config: HostConfig) -> Path:
    return config.host.state_dir.parent / "scripts"


def worker_argv(config: HostConfig) -> tuple[str, ...]:
    """The fake worker's command line."""
    return sys.executable, str(Path(fake_worker.__file__)), str(scripts(config))


def script(config: HostConfig, vm: str, **does: Any) -> None:
    """What this VM's workers do from their next command on, see `Script`."""
    scripts(config).mkdir(exist_ok=True)
    write_file(scripts(config) / f"{vm}.json", msgspec.json.encode(fake_worker.Script(**does)))


def events(daemon: Running, config: HostConfig, vm: str) -> list[str]:
    return [event.event for event in history(daemon, config, vm)]


def put(config: HostConfig, vm: str, **state: Any) -> None:
    """What an earlier daemon left."""
    StateStore(config.host.state_dir).update(vm, **state)


def history(daemon: Running, config: HostConfig, vm: str) -> list[Any]:
    daemon.daemon.history.flush(5)
    return read_history(config.host.state_dir, vm)
