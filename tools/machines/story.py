# SPDX-License-Identifier: Apache-2.0
"""What `make machines` tells: from two bare machines to a VM that outlives its host, step by step."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.machines import hosts, payload, vm
from tools.machines.machine import BOOT_S, Machine
from tools.machines.site import Site
from tools.show import step

SLOW_S = 600.0  # for what an emulated host does with an emulated VM: a copy, a proof, a takeover


class Story:
    """The steps, in order. Each raises AgentError when what it waits for does not come; `figures` grows with each."""

    def __init__(self, site: Site, folder: Path, key: Path) -> None:
        """`folder` is for what is brought to the hosts; `key` opens them by ssh."""
        self._site = site
        self._key = key
        self._folder = folder
        self.alpha, self.beta = site.machines["alpha"], site.machines["beta"]
        self.figures: dict[str, Any] = {}
        self.complaints: list[str] = []
        self._payload = folder.with_suffix(".tar")

    def boot(self) -> None:
        """Both machines, with all that systemd starts."""
        addresses = {machine.name: machine.address for machine in (self.alpha, self.beta)}
        self._payload = payload.pack(payload.collect(self._folder, addresses))
        with self._timed("boot_s", "both machines boot: Debian 13, its own kernel"):
            for machine in (self.alpha, self.beta):
                machine.start(self._payload)
            for machine in (self.alpha, self.beta):
                machine.await_boot()
        self.figures["kernel"] = self.alpha.run("uname -r").strip()

    def install(self) -> None:
        """`remusdb setup` of both, as README says; the units run. Said again, it finds nothing to do."""
        with self._timed("install_s", "remusdb setup sets both up over SSH"), ThreadPoolExecutor() as both:
            machines = self._site.machines
            list(both.map(lambda machine: hosts.connect(machine, machines), machines.values()))
            hosts.set_up(self._site, self._folder, self._key)
        with self._timed("again_s", "remusdb setup again"), ThreadPoolExecutor() as both:
            said = hosts.set_up(self._site, self._folder, self._key)
            for name in machines:
                self._expect(f"{name}: nothing to do" in said, f"remusdb setup, again, did something:\n{said}")
            for found in list(both.map(self._prepare, machines.values())):
                self.complaints += found

    def _prepare(self, machine: Machine) -> list[str]:
        hosts.slow_down(machine)
        vm.place_kernel(machine)
        return hosts.complaints(machine)

    def protect(self) -> None:
        """The VM runs on alpha and is protected to beta, behind the kernel's plug."""
        self.figures["vm"] = vm.start(self.alpha)
        with self._timed("protect_s", "the VM is protected"):
            self.alpha.run(f"remusdb check {vm.NAME} --to beta", SLOW_S)
            told = json.loads(self.alpha.run(f"remusdb protect {vm.NAME} --to beta --json", SLOW_S))
            self.figures["gate"] = told["gate"]
            self._await_protected(self.alpha)
        self._expect(self.figures["gate"] == "plug", f"the gate is {self.figures['gate']}, not the kernel's plug")
        qdiscs = self.alpha.run("tc qdisc show")
        self._expect(" plug " in f" {qdiscs} ", f"no plug is to be seen:\n{qdiscs}")
        for machine in (self.alpha, self.beta):
            profile = hosts.confined(machine, vm.NAME)
            self._expect(profile.startswith("libvirt-") and profile.endswith("(enforce)"), f"{machine.name}: {profile}")
        self.figures["apparmor"] = hosts.confined(self.beta, vm.NAME).partition(" ")[2]

    def kill(self) -> None:
        """Alpha loses power. Beta resumes the VM where its last checkpoint left it."""
        before = vm.count(self.alpha)
        with self._timed("takeover_s", "alpha is killed, and beta takes over"):
            self.alpha.kill()
            told = "did not take over"
            self.beta.eventually(
                lambda: hosts.status(self.beta, vm.NAME, agent=True).get("state") == "promoted", SLOW_S, told
            )
            self.beta.eventually(lambda: hosts.runs(self.beta, vm.NAME), SLOW_S, "the VM does not run")
        first = vm.count(self.beta)
        self.beta.eventually(lambda: vm.count(self.beta) > first, SLOW_S, "the VM stands still")
        self._expect(first > 0, "the VM began anew")
        self.figures["rounds_on_alpha"], self.figures["rounds_on_beta"] = before, vm.count(self.beta)

    def rejoin(self) -> None:
        """Alpha boots again, learns that it does not own the VM any more, and becomes the backup."""
        with self._timed("fenced_s", "alpha boots again and is fenced"):
            self.alpha.start(self._payload)
            self.alpha.await_boot()
            told = "does not learn that the VM is another's"
            self.alpha.eventually(lambda: hosts.status(self.alpha, vm.NAME).get("state") == "fenced", SLOW_S, told)
        self._expect(not hosts.runs(self.alpha, vm.NAME), "the VM runs on both")
        refused = self.alpha.attempt(f"virsh start {vm.NAME}")
        self._expect(refused.code != 0, "virsh start on the fenced host started the VM")
        self.complaints += hosts.complaints(self.alpha)
        with self._timed("reprotect_s", "the VM is protected back to alpha"):
            self.beta.run(f"remusdb reprotect {vm.NAME} --to alpha", SLOW_S)
            self._await_protected(self.beta)

    def reboot(self) -> None:
        """`systemctl reboot` of beta moves the VM first."""
        boot = self.beta.boot_id()
        with self._timed("reboot_s", "beta is rebooted, and moves its VM to alpha first"):
            self.beta.order("systemctl --no-block reboot")
            told = "the VM does not run there after beta's reboot"
            self.alpha.eventually(lambda: hosts.runs(self.alpha, vm.NAME), SLOW_S, told)
            self.beta.eventually(lambda: self.beta.boot_id() != boot, BOOT_S, "does not boot again")
            self.beta.await_boot()
        first = vm.count(self.alpha)
        self.alpha.eventually(lambda: vm.count(self.alpha) > first, SLOW_S, "the VM stands still")
        past = self.alpha.run(f"remusdb history {vm.NAME} --json")
        self._expect('"switchover-asked"' in past, f"alpha took over, but not by a switchover:\n{past}")
        self._expect(not hosts.runs(self.beta, vm.NAME), "the VM runs on both")
        self.complaints += hosts.complaints(self.beta)

    def look_back(self) -> None:
        """What AppArmor refused in all that time."""
        for machine in (self.alpha, self.beta):
            self.complaints += [f"{machine.name}: {line}" for line in hosts.denials(machine)]

    def _await_protected(self, machine: Machine) -> None:
        told = "the VM is not protected"
        machine.eventually(lambda: hosts.status(machine, vm.NAME).get("state") == "protected", SLOW_S, told)

    def _expect(self, holds: bool, complaint: str) -> None:
        if not holds:
            self.complaints.append(complaint)

    @contextmanager
    def _timed(self, key: str, text: str) -> Iterator[None]:
        """A step that is shown, and whose seconds are kept."""
        began = time.monotonic()
        with step(text):
            yield
        self.figures[key] = round(time.monotonic() - began, 1)
