# SPDX-License-Identifier: Apache-2.0
"""remusdb on the lab's hosts, used as an operator uses it: certificates, two config files, two daemons, the CLI.

with Lab() as lab:
    product = Product(lab, logs)
    product.install()
    product.start()
    product.cli("a", "protect", "pg", "--to", "b")
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.lab.host import Host
from tools.lab.lab import Lab

PORT = 7473
Settings = Mapping[str, int | str | bool]


class Product:
    """The host daemon on `a` and the agent on `b`. Their logs go to `logs`, which outlives the lab."""

    def __init__(self, lab: Lab, logs: Path) -> None:
        self._lab = lab
        self._logs = logs
        self.daemons: dict[str, subprocess.Popen[str]] = {}

    def install(self, protection: Settings | None = None, failover: Settings | None = None) -> None:
        """Makes certificates and config files on both hosts; the settings are lines of those two tables."""
        self._logs.mkdir(parents=True, exist_ok=True)
        made = self._lab.folder / "certs"
        a, b = self._lab.host("a"), self._lab.host("b")
        hosts = [part for host in (a, b) for part in ("--host", f"{host.name}={host.ip4}")]
        a.run(["remusdb", "certs", "--out", str(made), *hosts])
        for host in (a, b):
            shutil.copytree(made / host.name, host.path("/etc/remusdb/tls"))
        peer = f'[host]\nname = "{a.name}"\n\n[peers.{b.name}]\naddress = "{b.ip4}"\nport = {PORT}\n\n'
        a.path("/etc/remusdb/host.toml").write_text(peer + _table("protection", protection))
        agent = f'[agent]\nname = "{b.name}"\nlisten = "{b.ip4}"\nport = {PORT}\n\n'
        b.path("/etc/remusdb/agent.toml").write_text(agent + _table("failover", failover))

    def start(self) -> None:
        """Starts both daemons and returns when both answer. Raises RuntimeError when one does not."""
        self.start_agent()
        self.start_host()

    def start_agent(self) -> None:
        """Starts the agent on `b`."""
        self._start("agent", self._lab.host("b"))

    def start_host(self) -> None:
        """Starts the host daemon on `a`."""
        self._start("host", self._lab.host("a"))

    def _start(self, daemon: str, on: Host, timeout_s: float = 20.0) -> None:
        log = self._logs / f"{daemon}.log"
        command = ["remusdb", daemon, "--config", f"/etc/remusdb/{daemon}.toml"]
        process = self.daemons[daemon] = on.popen(command, log=log)
        socket = on.path(f"/run/remusdb/{daemon}.sock")
        deadline = time.monotonic() + timeout_s
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"remusdb {daemon} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)

    def cli(self, on: str, *args: str, check: bool = True, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs `remusdb ARGS` on a host. Raises RuntimeError if `check` and it failed."""
        return self._lab.host(on).run(["remusdb", *args], check=check, timeout_s=timeout_s)

    def status(self, vm: str) -> dict[str, Any]:
        """What the host daemon on `a` says of a VM."""
        return _only(self.cli("a", "status", vm, "--json").stdout)

    def standby(self, vm: str) -> dict[str, Any]:
        """What the agent on `b` says of a VM."""
        return _only(self.cli("b", "status", "--agent", vm, "--json").stdout)

    def keep_logs(self) -> None:
        """Copies what libvirt, QEMU and the VMs' serial consoles logged next to the daemons' logs."""
        for name in ("a", "b"):
            shutil.copytree(
                self._lab.host(name).path("/var/log/libvirt"), self._logs / f"libvirt-{name}", dirs_exist_ok=True
            )


def _only(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output)["vms"][0]
    return found


def _table(name: str, settings: Settings | None) -> str:
    # JSON's numbers, strings and booleans are TOML's, too.
    return f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in (settings or {}).items())
