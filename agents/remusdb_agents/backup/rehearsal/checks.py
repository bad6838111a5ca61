# SPDX-License-Identifier: Apache-2.0
"""Whether the copy of a VM really runs: what is looked at while it does, and the verdict."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import libvirt_qemu

from remusdb.control.api import Look
from remusdb.errors import VmError
from remusdb.printable import printable
from remusdb.vm.monitor import field_of
from remusdb_agents.backup.rehearsal.copy import Copy

LOOK_S = 0.1
CONNECT_S = 1.0
AGENT = "org.qemu.guest_agent.0"
TAIL_BYTES = 4096  # of what the copy printed
AGENT_S = 1  # libvirt counts in whole seconds


@dataclass
class Checks:
    """Looks at a copy that has just been resumed. `addresses`: those that the primary's guest has shown."""

    copy: Copy
    addresses: list[str]
    tcp_port: int | None
    _proofs: dict[str, Look] = field(default_factory=dict)
    _seen: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._ran_before = _cpu_seconds(self.copy.domain.pid)
        if self.copy.serial is not None:
            self._seen = _mark(self.copy.serial)
            self._prove("serial", False, "nothing was printed")
        if self.copy.taps:
            self._prove("network", False, "the guest has shown no address")
        if self.tcp_port is not None:
            self._prove("tcp", False, "the guest has shown no address" if self.copy.taps else "the VM has no interface")
        if self.copy.domain.tree.find(f"./devices/channel/target[@name='{AGENT}']") is not None:
            self._prove("agent", False, "the guest agent did not answer")

    def watch(self, seconds: float, ended: Callable[[float], str], told: Callable[[float], None]) -> list[Look]:
        """Look for so long; `ended` waits as long as it is told and gives a reason to end early, or raises one."""
        early = ""
        while (ran := time.monotonic() - self._began) < seconds and not early:
            told(ran)
            if not self.copy.domain.alive():
                early = "its QEMU ended: the guest was shut down, was reset, or crashed"
                break
            for name, look in (
                ("serial", self._serial), ("network", self._network), ("tcp", self._tcp), ("agent", self._agent)
            ):  # fmt: skip
                if name in self._proofs and not self._proofs[name].ok:
                    look()
            early = ended(min(LOOK_S, max(0.0, seconds - ran)))
        cut_short = [Look("time", False, f"ended after {ran:.1f} s: {early}")] if early else []
        return [self._runs(early), *cut_short, *self._proofs.values()]

    def _runs(self, early: str) -> Look:
        try:
            state = field_of("query-status", self.copy.domain.qmp("query-status"), "status", str)
            ran = _cpu_seconds(self.copy.domain.pid) - self._ran_before
        except VmError:
            return Look("runs", False, early or "its QEMU ended")
        wall = time.monotonic() - self._began
        detail = f"{state} after {wall:.1f} s, its vCPUs computed for {ran:.2f} s of them"
        return Look("runs", state == "running" and ran > 0, detail)

    def _serial(self) -> None:
        serial = self.copy.serial
        if serial is not None and (now := _mark(serial)) != self._seen:
            self._prove("serial", True, f"it printed {_last_line(serial)!r} ({now[1]} bytes)")

    def _network(self) -> None:
        macs = set(self.copy.taps.values())
        for address in self._known():
            mac = self.copy.island.answers(address)
            if mac in macs:
                return self._prove("network", True, f"{address} answers from {mac}")
            self._prove("network", False, f"{address}: {f'{mac} answers, not the guest' if mac else 'no answer'}")

    def _tcp(self) -> None:
        assert self.tcp_port is not None
        for address in self._known():
            began = time.monotonic()
            try:
                self.copy.island.connect(address, self.tcp_port, CONNECT_S)
            except OSError as exc:
                self._prove("tcp", False, f"{address} port {self.tcp_port}: {exc.strerror or exc}")
                continue
            took = (time.monotonic() - began) * 1000
            return self._prove("tcp", True, f"{address} port {self.tcp_port} accepts connections ({took:.0f} ms)")

    def _agent(self) -> None:
        domain = self.copy.domain
        ping = json.dumps({"execute": "guest-ping"})
        try:
            domain.calls.call("guest agent", libvirt_qemu.qemuAgentCommand, domain.handle, ping, AGENT_S, 0)
        except VmError as exc:
            self._prove("agent", False, str(exc))
        else:
            self._prove("agent", True, "the guest agent answers")

    def _known(self) -> list[str]:
        """IPv4 first: its answer takes one round trip."""
        found = dict.fromkeys([*self.addresses, *self.copy.island.addresses()])
        return sorted(found, key=lambda address: (":" in address, address.startswith("fe80")))

    def _prove(self, name: str, ok: bool, detail: str) -> None:
        self._proofs[name] = Look(name, ok, detail)


def verdict(checks: list[Look], tcp_wanted: bool) -> bool:
    """Whether it runs and shows life; a TCP port that was asked for must have answered."""
    passed = {check.name for check in checks if check.ok}
    return "runs" in passed and bool(passed - {"runs"}) and (not tcp_wanted or "tcp" in passed)


def _mark(path: Path) -> tuple[int, int]:
    """What changes when something is printed, also when libvirt's log daemon begins the file again."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_ino, stat.st_size


def _last_line(path: Path) -> str:
    """Of what a guest prints without an end, perhaps: no more than the end of it is read."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        lines = file.read(TAIL_BYTES).decode(errors="replace").split("\n")
    return printable(next((line.strip() for line in reversed(lines[:-1] or lines) if line.strip()), "")[-60:])


def _cpu_seconds(pid: int) -> float:
    """What the vCPU threads of a QEMU have computed; nothing when it has ended."""
    ran = 0
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            if (thread / "comm").read_text().startswith("CPU "):
                ran += int((thread / "schedstat").read_text().split()[0])
    return ran / 1e9
