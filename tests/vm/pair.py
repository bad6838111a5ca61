# SPDX-License-Identifier: Apache-2.0
"""Two hosts with remusdb on them, and what the vm tests ask of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from remusdb.capture.memory import ProcessMemory
from remusdb.control.api import AgentStatus, HostStatus
from remusdb.vm.ramblocks import Block, parse_ramblocks
from tests import waiting
from tools.lab import Lab, domains
from tools.lab.etcd import Etcd
from tools.lab.guest import Mode
from tools.lab.host import Host
from tools.lab.product import Product

SLACK = 4  # times what a quiet machine needs at most: how fast it is, a benchmark tells


def eventually(what: Callable[[], object], within_s: float = 10.0, otherwise: str = "it did not happen") -> None:
    """Wait until `what` is true; AssertionError after SLACK times `within_s`."""
    waiting.eventually(what, SLACK * within_s, otherwise)


def parent(pid: int) -> int:
    """The parent of a process; 0 once it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


class Pair:
    """Hosts `a` (primary) and `b` (backup), both with libvirt and the product."""

    def __init__(self, lab: Lab, product: Product) -> None:
        self.lab, self.product = lab, product
        self.a, self.b = lab.host("a"), lab.host("b")
        self.etcd: Etcd | None = None
        self._count = 0

    def bare(self, mode: Mode = Mode.DIRTIER, *, kind: str = "", vcpus: int = 1) -> domains.Vm:
        """A running bare-metal guest with a name of its own, under KVM where there is one. `kind`: `qemu` for TCG."""
        self._count += 1
        vm = domains.define_bare(self.a, mode, name=f"bare{self._count}", kind=kind, vcpus=vcpus)
        self.start(vm)
        return vm

    def start(self, vm: domains.Vm) -> None:
        """Start a bare-metal guest that was defined, and wait until it runs."""
        self.a.run(["virsh", "start", vm.name])
        eventually(lambda: len(vm.serial_text(self.a)) > 20, 20, f"{vm.name} prints nothing")

    def clear(self) -> None:
        """Remove every VM of both hosts and what is left of their sessions; start a daemon that is down."""
        for host in (self.a, self.b):
            for daemon, start in (("agent", self.product.start_agent), ("host", self.product.start_host)):
                if not self.product.running(daemon, host.name):
                    start(host.name)
        for host in (self.a, self.b):
            for vm in host.run(["virsh", "list", "--name"]).stdout.split():
                host.run(["virsh", "destroy", vm], check=False)
        for host in (self.a, self.b):
            for known in self.product.ask("host", host.name, HostStatus()).vms:
                if known.state != "unprotected":
                    self.product.cli(host.name, "unprotect", known.vm, "--peer-is-dead", check=False)
            for kept in self.product.ask("agent", host.name, AgentStatus()).vms:
                if kept.state == "promoted":  # it makes its host not protected for as long as it is there
                    host.run(["virsh", "undefine", kept.vm], check=False)

    def protect(self, vm: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`remusdb protect VM --to b` on host a."""
        return self.product.cli("a", "protect", vm, "--to", "b", check=check, timeout_s=90)

    def unprotect(self, vm: str, *options: str) -> None:
        """`remusdb unprotect VM`."""
        self.product.cli("a", "unprotect", vm, *options)

    def state(self, vm: str) -> str:
        """The VM's state in the primary's status."""
        return str(self.product.status(vm)["state"])

    def await_state(self, vm: str, *states: str, within_s: float = 15.0) -> dict[str, Any]:
        """Wait for one of these states; the status then."""
        eventually(
            lambda: self.state(vm) in states, within_s, f"{vm} did not become {states}: {self.product.status(vm)}"
        )
        return self.product.status(vm)

    def await_epoch(self, vm: str, epoch: int, within_s: float = 15.0) -> None:
        """Wait until the primary's status says that this epoch is committed. It is up to seconds old under load."""
        eventually(
            lambda: self.product.status(vm)["committed"] >= epoch,
            within_s,
            f"epoch {epoch} of {vm} was not committed: {self.product.status(vm)}",
        )

    def goes_on(self, vm: str) -> None:
        """Epochs are cut and committed, from now on too."""
        self.await_epoch(vm, self.product.status(vm)["committed"] + 10)

    def events(self, vm: str, on: str = "a") -> list[dict[str, Any]]:
        """The VM's history as that host keeps it."""
        told = self.product.cli(on, "history", vm, "--json", check=False).stdout
        found: list[dict[str, Any]] = json.loads(told)["events"] if told else []
        return found

    def await_event(self, vm: str, event: str, on: str = "a", within_s: float = 15.0) -> dict[str, Any]:
        """Wait until the history has this event; the newest of them."""

        def found() -> list[dict[str, Any]]:
            return [one for one in self.events(vm, on) if one["event"] == event]

        eventually(found, within_s, f"no `{event}` in the history of {vm} on {on}")
        return found()[-1]

    def runs(self, vm: domains.Vm, host: Host | None = None) -> bool:
        """Whether the guest gets further: its serial output grows."""
        on = host or self.a
        before = len(vm.serial_text(on))
        with contextlib.suppress(AssertionError):
            eventually(lambda: len(vm.serial_text(on)) > before, 5)
        return len(vm.serial_text(on)) > before

    def running(self, host: Host) -> list[str]:
        """The domains that run there, without the standbys, which are paused."""
        return host.run(["virsh", "list", "--state-running", "--name"]).stdout.split()

    def pids(self, host: Host, *words: str) -> list[int]:
        """Processes of this host whose command line holds all these words."""
        found = []
        for pid in host.pids():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if all(word in line for word in words):
                    found.append(pid)
        return found

    def kill(self, host: Host, *words: str) -> None:
        """SIGKILL the one process whose command line holds all these words."""
        found = self.pids(host, *words)
        (pid,) = [pid for pid in found if parent(pid) not in found]  # a child has its parent's words until it execs
        os.kill(pid, signal.SIGKILL)

    def blocks(self, host: Host, vm: str) -> dict[str, Block]:
        """QEMU's RAM blocks by name."""
        text = host.run(["virsh", "qemu-monitor-command", vm, "--hmp", "info ramblock"]).stdout
        return {block.name: block for block in parse_ramblocks(text)}

    def settle(self, vm: str) -> None:
        """Stop the VM and wait until the replica has an epoch that was cut after that."""
        self.stop(self.a, vm)
        time.sleep(0.5)  # the status that is read next must be newer
        after = int(self.product.status(vm)["epoch"]) + 2
        eventually(lambda: self.product.standby(vm)["applied"] >= after, 20, "no epoch was applied")

    def stop(self, host: Host, vm: str) -> None:
        """Stop the VM for good. `virsh suspend` does nothing where libvirt takes it for paused, as during a cut."""
        host.run(["virsh", "qemu-monitor-command", vm, "--hmp", "stop"])

    def differing_blocks(self, vm: str) -> list[str]:
        """RAM blocks whose bytes are not the same on both hosts."""
        here, there = self.blocks(self.a, vm), self.blocks(self.b, vm)
        assert list(here) == list(there) or set(here) == set(there)
        mine, theirs = ProcessMemory(self.a.qemu_pid(vm)), ProcessMemory(self.b.qemu_pid(vm))
        return [name for name in here if not _equal(mine, here[name], theirs, there[name])]


def _equal(mine: ProcessMemory, here: Block, theirs: ProcessMemory, there: Block) -> bool:
    assert here.size == there.size
    for first in range(0, here.pages, 8192):
        numbers = np.arange(first, min(first + 8192, here.pages), dtype=np.int64)
        if not np.array_equal(mine.read(here.address, numbers), theirs.read(there.address, numbers)):
            return False
    return True


def network_of(host: Host) -> dict[str, Any]:
    """Links, qdiscs and filters of a host, without counters and indexes: what `unprotect` must restore."""
    links = json.loads(host.run(["ip", "-d", "-j", "link"]).stdout)
    kept = [
        {key: link.get(key) for key in ("ifname", "master", "mtu", "address", "operstate", "txqlen")} for link in links
    ]
    taps = [link["ifname"] for link in links if link["ifname"].startswith("vnet")]
    rules = {tap: host.run(["tc", "qdisc", "show", "dev", tap]).stdout for tap in taps}
    filters = {tap: host.run(["tc", "filter", "show", "dev", tap, "ingress"], check=False).stdout for tap in taps}
    return {"links": sorted(kept, key=lambda link: str(link["ifname"])), "rules": rules, "filters": filters}


def space_alarm(pair: Pair, etcd: Etcd, action: str) -> None:
    """etcd's own alarm, as it raises it when its space is used up: it then takes no change, and answers every read."""
    (member,) = _told(pair, f"{etcd.url}/v3/cluster/member/list", {})["members"]
    _told(pair, f"{etcd.url}/v3/maintenance/alarm", {"action": action, "memberID": member["ID"], "alarm": "NOSPACE"})


def _told(pair: Pair, url: str, question: dict[str, Any]) -> dict[str, Any]:
    script = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], sys.argv[2].encode(), 5).read().decode())"
    answer = pair.lab.witness.run(["python3", "-c", script, url, json.dumps(question)]).stdout
    return json.loads(answer)  # type: ignore[no-any-return]


@contextlib.contextmanager
def running_pair(
    logs: Path, *, arbiter: bool = False, before_start: Callable[[Pair], None] | None = None
) -> Iterator[Pair]:
    """A lab with the product installed and started, with an etcd if asked for; logs are kept in `logs`."""
    with Lab() as lab:
        product = Product(lab, logs)
        pair = Pair(lab, product)
        try:
            lab.start_libvirt()
            product.install(arbiter=arbiter)
            if arbiter:
                (lab.folder / "etcd").mkdir()
                pair.etcd = Etcd(lab.witness, lab.folder / "etcd")
                pair.etcd.start()
            if before_start is not None:
                before_start(pair)
            product.start()
            yield pair
        finally:
            product.keep_logs()
