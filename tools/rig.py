# SPDX-License-Identifier: Apache-2.0
"""A protected PostgreSQL VM on two hosts that takes blow after blow: what the soak and the fault matrix work on."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from remusdb.deadline import Deadline
from tools.faults import find
from tools.lab import Host, Lab, domains, image
from tools.lab.etcd import Etcd
from tools.lab.product import HOSTS, Product, Settings, other_host
from tools.load import Load, accepts, wait_for
from tools.show import step

VM = "pg"
_BOOT_S = 120.0
_PROTECT_S = 120.0
_REPAIR_S = 150.0


class Broken(RuntimeError):
    """The pair cannot be brought back to a protected VM by what an operator would do."""


class Rig:
    """Lab, product, etcd and load. `load` runs as long as the rig does."""

    def __init__(self, lab: Lab, product: Product, etcd: Etcd, load: Load) -> None:
        self.lab, self.product, self.etcd, self.load = lab, product, etcd, load
        self.resets = 0  # connections that the clients have lost so far, as far as anybody looked

    def host(self, name: str) -> Host:
        """The host of this name in the lab."""
        return self.lab.host(name)

    def state(self, name: str) -> str:
        """The VM's state on that host."""
        return self.product.view(name, VM).state

    def protected(self, name: str) -> bool:
        """Whether the VM of that host is protected by the other one."""
        return self.state(name) == "protected" and self.state(other_host(name)) == "ready"

    def start_parts(self) -> None:
        """Starts what does not run: hosts whose libvirt is gone are booted, daemons and etcd are started."""
        if not find(self.lab.witness, "etcd"):
            self.etcd.kill()  # it is dead; now its object knows
            self.etcd.start()
        for name in HOSTS:
            if not self._libvirt_answers(name):
                self.host(name).kill()
                self.product.reboot(name)
            for daemon, start in (("agent", self.product.start_agent), ("host", self.product.start_host)):
                if not self.product.running(daemon, name):
                    start(name)

    def _libvirt_answers(self, name: str) -> bool:
        try:
            return self.host(name).run(["virsh", "list"], check=False, timeout_s=10.0).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def make_protected(self) -> str:
        """Does what an operator would until the VM is protected; gives the host that runs it. Raises Broken."""
        deadline = Deadline.after(_REPAIR_S)
        said = ""
        while not deadline.over:
            owner = self.product.owner(VM)
            if owner and self.protected(owner):
                return owner
            said = self.protect(owner) if owner else self.boot_vm()
            time.sleep(0.5)
        states = {name: (view.state, view.reason) for name in HOSTS if (view := self.product.view(name, VM))}
        raise Broken(f"{VM} does not become protected in {_REPAIR_S:.0f} s: {states}\n{said}")

    def protect(self, owner: str) -> str:
        """`reprotect` to the other host, or `protect` where it was never protected; what the CLI said if it failed."""
        verb = "protect" if self.product.durable(owner, VM).role == "none" else "reprotect"
        try:
            done = self.product.cli(owner, verb, VM, "--to", other_host(owner), check=False, timeout_s=_PROTECT_S)
        except subprocess.TimeoutExpired:
            return f"{verb}: no answer in {_PROTECT_S:.0f} s"
        return done.stderr if done.returncode else ""

    def boot_vm(self) -> str:
        """Boots the VM where it is defined and not fenced, as an operator would; what virsh said."""
        states = {name: self.product.durable(name, VM) for name in HOSTS}
        able = [name for name in HOSTS if states[name].role not in ("fenced", "standby") and VM in self._defined(name)]
        if not able:
            return "no host may start the VM"
        # Where its newest state is: an older one would lose what was acknowledged since.
        best = max(able, key=lambda name: (states[name].owner == name, states[name].term))
        said = self.host(best).run(["virsh", "start", VM], check=False).stderr
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: accepts(self.lab), _BOOT_S, "PostgreSQL does not accept connections", 0.5)
        return said

    def _defined(self, name: str) -> list[str]:
        return self.host(name).run(["virsh", "list", "--all", "--name"], check=False).stdout.split()

    def reset_clients(self) -> None:
        """Breaks the clients' connections: their server has rebooted, and they would wait for it for ever."""
        self.lab.client.run(["ss", "-HKtn", "dport", "=", ":5432"], check=False)

    def wire_bytes(self, name: str) -> int:
        """Bytes that came out of that host so far."""
        port = self.host(name).port
        shown = subprocess.run(
            ["ip", "-netns", self.lab.lan, "-j", "-s", "link", "show", port],
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return int(json.loads(shown.stdout)[0]["stats64"]["rx"]["bytes"])


@contextlib.contextmanager
def running_rig(folder: Path, protection: Settings | None = None, failover: Settings | None = None) -> Iterator[Rig]:
    """A rig whose VM runs on host `a`, unprotected, under load. Logs and records go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with step("the database VM's image (about a minute if it is not there yet)"):
        built = image.ensure(folder / "image.log")
    with Lab() as lab:
        product = Product(lab, folder)
        etcd = Etcd(lab.witness, lab.folder)
        try:
            with step("two hosts, a client and a witness; the VM boots"):
                lab.host("a").start_libvirt()
                domains.define_db(lab.host("a"), built, name=VM)
                lab.host("a").run(["virsh", "start", VM])
                lab.host("b").start_libvirt()
                etcd.start()
                product.install(protection, failover, arbiter=True)
                product.start()
                wait_for(lambda: accepts(lab), _BOOT_S, "PostgreSQL does not accept connections", 0.5)
            load = Load(lab, folder)
            wait_for(lambda: len(load.acks) >= load.clients, 60.0, "the clients get nothing done")
            yield Rig(lab, product, etcd, load)
        finally:
            with contextlib.suppress(RuntimeError, OSError, TimeoutError):
                product.keep_logs()
