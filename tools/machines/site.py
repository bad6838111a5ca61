# SPDX-License-Identifier: Apache-2.0
"""Where the two machines stand: a switch in a network namespace of its own, and what is gone when the run ends."""

from __future__ import annotations

from pathlib import Path

from tools.lab.image import Image
from tools.lab.lab import Lab
from tools.lab.links import ip
from tools.machines.machine import Machine

NAMES = ("alpha", "beta")


class Site(Lab):
    """Machines `alpha` and `beta`, each with a tap on the bridge `lan0`. Removed as any lab is: however the run ends.

    Each machine's QEMU is a process of the site's namespace, and so ends with it.
    """

    def __init__(self, image: Image, logs: Path, accel: str) -> None:
        super().__init__()
        self._image = image
        self._logs = logs
        self._accel = accel
        self.machines: dict[str, Machine] = {}

    def _create(self) -> None:
        self.folder.mkdir(parents=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        ip(f"netns add {self.lan}")
        bridge = "link add lan0 type bridge stp_state 0 forward_delay 0\nlink set lan0 up\n"
        ip(f"link set lo up\n{bridge}addr add 10.77.1.254/24 dev lan0\n", netns=self.lan)  # for who sets them up
        for number, name in enumerate(NAMES, start=1):
            made = Machine(name, number, self._image, self.lan, self.folder, self._logs, self._accel)
            ip(f"tuntap add {made.tap} mode tap\nlink set {made.tap} master lan0 up\n", netns=self.lan)
            self.machines[name] = made
