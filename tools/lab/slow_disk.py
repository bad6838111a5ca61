# SPDX-License-Identifier: Apache-2.0
"""A disk file that is slow where it matters: under FUSE, with O_DIRECT, the pages of a read stay pinned while it waits.

A slow QEMU (throttling, blkdebug) would not do: it waits before it hands the read to the kernel.
"""

from __future__ import annotations

import subprocess
import time

from remusdb.deadline import Deadline
from tools.lab.host import Host

_FILE = "disk"
_START_S = 10.0


class SlowDisk:
    """`mib` of random bytes as the file `path` in the host's mount namespace. Each read takes `read_ms`."""

    def __init__(self, host: Host, *, mib: int, read_ms: int) -> None:
        """Mounts it; RuntimeError when that fails."""
        self._host = host
        folder = host.path("/var/lib/libvirt/slow")
        folder.mkdir()
        self.path = f"/var/lib/libvirt/slow/{_FILE}"
        self.pages = mib << 8
        socket = "/var/lib/libvirt/slow.nbd"
        serve = ["nbdkit", "--foreground", "--unix", socket, "--filter=delay", "random", f"{mib}M", "seed=1"]
        mount = ["nbdfuse", "--connections", "8", self.path, "--unix", socket]
        self._programs: list[subprocess.Popen[str]] = []
        self._start([*serve, f"rdelay={read_ms}ms"], ["test", "-S", socket])
        self._start(mount, ["test", "-f", self.path])

    def close(self) -> None:
        """Unmounts it. The VM that uses it must be gone."""
        for program in reversed(self._programs):
            program.terminate()
            program.wait(_START_S)

    def _start(self, command: list[str], ready: list[str]) -> None:
        self._programs.append(self._host.popen(command))
        deadline = Deadline.after(_START_S)
        while self._host.run(ready, check=False).returncode:
            if deadline.over or self._programs[-1].poll() is not None:
                raise RuntimeError(f"{command[0]} did not start on {self._host.name}")
            time.sleep(0.02)
