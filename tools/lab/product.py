# SPDX-License-Identifier: Apache-2.0
"""remusdb on the lab's hosts, used as an operator uses it: certificates, two config files, two daemons, the CLI.

with Lab() as lab:
    product = Product(lab, logs)
    product.install()
    product.start()
    product.cli("a", "protect", "pg", "--to", "b")

The daemons have no more rights than their systemd units leave them (tools/lab/confine.py).
Both hosts have both daemons: a VM is protected in either direction. `a` is where a VM starts, unless said otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remusdb.control import Request, call
from remusdb.control.api import AgentStatus, HostStatus
from remusdb.control.codec import Reply
from remusdb.control.status import StandbyStatus, VmStatus
from remusdb.core.roles import OWNING
from remusdb.deadline import Deadline, poll_until
from remusdb.errors import NotProtected, RemusError
from remusdb.state import StateStore, VmState
from tools.lab.lab import Lab
from tools.lab.paths import BUILD
from tools.lab.view import View

PORT = 7473
HOSTS = ("a", "b")
ARBITER = "http://10.77.0.90:2379"  # etcd on the node `witness`
Settings = Mapping[str, int | str | bool]


class Product:
    """Host daemon and agent of both hosts, by (daemon, host). Their logs go to `logs`, which outlives the lab."""

    def __init__(self, lab: Lab, logs: Path, start_s: float = 60.0) -> None:
        """`start_s`: how long a daemon may take to start."""
        self._lab = lab
        self._start_s = start_s
        self._logs = logs
        self.daemons: dict[tuple[str, str], subprocess.Popen[str]] = {}

    def install(
        self, protection: Settings | None = None, failover: Settings | None = None, *, arbiter: bool = False
    ) -> None:
        """Makes certificates and config files on both hosts; the settings are lines of those two tables.

        With `arbiter` both name the etcd of the lab's witness, which somebody else starts.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        made = self._lab.folder / "certs"
        hosts = [self._lab.host(name) for name in HOSTS]
        named = [part for host in hosts for part in ("--host", f"{host.name}={host.ip4}")]
        hosts[0].run(["remusdb", "certs", "--out", str(made), *named])
        decides = f"[arbiter]\nendpoints = {json.dumps([ARBITER])}\n\n" if arbiter else ""
        for host, other in (hosts, reversed(hosts)):
            shutil.copytree(made / host.name, host.path("/etc/remusdb/tls"))
            head = f'[host]\nname = "{host.name}"\n\n[peers.{other.name}]\naddress = "{other.ip4}"\nport = {PORT}\n\n'
            host.path("/etc/remusdb/host.toml").write_text(head + decides + _table("protection", protection))
            readable = json.dumps(["/usr/share", str(BUILD)])  # where the lab's kernels are
            head = (
                f'[agent]\nname = "{host.name}"\nlisten = "{host.ip4}"\nport = {PORT}\nreadable_dirs = {readable}\n\n'
            )
            head += f"[primaries.{other.name}]\n\n"
            host.path("/etc/remusdb/agent.toml").write_text(head + decides + _table("failover", failover))

    def start(self) -> None:
        """Starts all four daemons and returns when all answer. Raises RuntimeError when one does not."""
        pairs = [(daemon, name) for name in HOSTS for daemon in ("agent", "host")]
        for daemon, name in pairs:
            self._launch(daemon, name)
        for daemon, name in pairs:
            self._await_socket(daemon, name)

    def start_agent(self, on: str = "b") -> None:
        """Starts the agent of a host."""
        self._launch("agent", on)
        self._await_socket("agent", on)

    def start_host(self, on: str = "a") -> None:
        """Starts the host daemon of a host."""
        self._launch("host", on)
        self._await_socket("host", on)

    def running(self, daemon: str, on: str) -> bool:
        """Whether that daemon was started and has not ended."""
        process = self.daemons.get((daemon, on))
        return process is not None and process.poll() is None

    def reboot(self, name: str) -> None:
        """The next boot of a host that was killed: libvirt and both daemons run, no VM does."""
        self._lab.host(name).boot()
        for daemon in ("agent", "host"):
            self._launch(daemon, name)
        for daemon in ("agent", "host"):
            self._await_socket(daemon, name)

    def _launch(self, daemon: str, on: str) -> None:
        host = self._lab.host(on)
        host.path(f"/run/remusdb/{daemon}.sock").unlink(missing_ok=True)  # of one that was killed
        confined = [sys.executable, "-m", "tools.lab.confine", f"remusdb-{daemon}.service"]
        command = [*confined, "remusdb", daemon, "--config", f"/etc/remusdb/{daemon}.toml"]
        self.daemons[daemon, on] = host.popen(command, log=self._log(daemon, on))

    def _await_socket(self, daemon: str, on: str) -> None:
        socket = self._lab.host(on).path(f"/run/remusdb/{daemon}.sock")
        poll_until(lambda: socket.exists() or not self.running(daemon, on), Deadline.after(self._start_s), 0.05)
        if not socket.exists():
            raise RuntimeError(f"remusdb {daemon} on {on} did not start:\n{self._log(daemon, on).read_text()[-2000:]}")

    def _log(self, daemon: str, on: str) -> Path:
        return self._logs / f"{daemon}-{on}.log"

    def cli(self, on: str, *args: str, check: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs `remusdb ARGS` on a host. Raises RuntimeError if `check` and it failed."""
        return self._lab.host(on).run(["remusdb", *args], check=check, timeout_s=timeout_s)

    def status(self, vm: str, on: str = "a") -> dict[str, Any]:
        """What `remusdb status` on a host says of a VM."""
        done = self.cli(on, "status", vm, "--json", check=False)
        if done.returncode not in (0, NotProtected.exit_code):  # that one is an answer, too
            raise RuntimeError(f"remusdb status {vm} on {on}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return _only(done.stdout)

    def standby(self, vm: str, on: str = "b") -> dict[str, Any]:
        """What the agent of a host says of a VM."""
        return _only(self.cli(on, "status", "--agent", vm, "--json").stdout)

    def ask(self, daemon: str, on: str, request: Request[Reply], timeout_s: float = 5.0) -> Reply:
        """One request to a daemon's control socket, without the start of a program. Raises RemusError."""
        socket = self._lab.host(on).run_alias / "remusdb" / f"{daemon}.sock"
        return call(socket, request, timeout_s=timeout_s)

    def view(self, on: str, vm: str, timeout_s: float = 1.0) -> View:
        """What both daemons of a host say of a VM; a daemon that does not answer says nothing."""
        return View(self._host_says(on, vm, timeout_s), self._agent_says(on, vm, timeout_s))

    def _host_says(self, on: str, vm: str, timeout_s: float) -> VmStatus | None:
        if not self.running("host", on):
            return None
        with contextlib.suppress(RemusError, OSError):
            return next(iter(self.ask("host", on, HostStatus(vm=vm), timeout_s).vms), None)
        return None

    def _agent_says(self, on: str, vm: str, timeout_s: float) -> StandbyStatus | None:
        if not self.running("agent", on):
            return None
        with contextlib.suppress(RemusError, OSError):
            return next(iter(self.ask("agent", on, AgentStatus(vm=vm), timeout_s).vms), None)
        return None

    def durable(self, on: str, vm: str) -> VmState:
        """What a host durably knows of a VM: the truth that `status` should tell. RemusError when it is unreadable."""
        return StateStore(self._lab.host(on).path("/var/lib/remusdb")).load(vm)

    def owner(self, vm: str) -> str | None:
        """The host on which the VM runs, as itself and unfenced; None when it runs nowhere.

        Of two that think so, the one of the newer term: the other one has not learned it yet.
        """
        states = {name: self.durable(name, vm) for name in HOSTS}
        owning = [name for name in HOSTS if states[name].role in ("none", *OWNING) and self.vm_runs(name, vm)]
        return max(owning, key=lambda name: states[name].term, default=None)

    def vm_runs(self, on: str, vm: str) -> bool:
        """Whether the VM's QEMU is there: as the VM or as its standby."""
        try:
            os.kill(self._lab.host(on).qemu_pid(vm), 0)
        except (OSError, ValueError):
            return False
        return True

    def keep_logs(self) -> None:
        """Copies what libvirt, QEMU and the VMs' serial consoles logged next to the daemons' logs, and the states."""
        for host in (self._lab.host(name) for name in HOSTS):
            for inside, kept in (("/var/log/libvirt", "libvirt"), ("/var/lib/remusdb", "state")):
                leave_out = shutil.ignore_patterns("*.raw", "*.qcow2", "*.lock")
                to = self._logs / f"{kept}-{host.name}"
                shutil.copytree(host.path(inside), to, dirs_exist_ok=True, ignore=leave_out)


def other_host(name: str) -> str:
    """The other one of the pair."""
    return HOSTS[1 - HOSTS.index(name)]


def _only(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output)["vms"][0]
    return found


def _table(name: str, settings: Settings | None) -> str:
    # JSON's numbers, strings and booleans are TOML's, too.
    return f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in (settings or {}).items())
