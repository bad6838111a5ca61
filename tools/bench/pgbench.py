# SPDX-License-Identifier: Apache-2.0
"""pgbench on the lab's client, against the PostgreSQL of the lab's VM."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.lab import Lab, domains
from tools.lab.image import Image

_INIT_S, _SPARE_S = 180.0, 120.0
_TPS = re.compile(r"^tps = ([\d.]+) ", re.MULTILINE)
_LATENCY = re.compile(r"^latency average = ([\d.]+) ms", re.MULTILINE)


@dataclass(frozen=True)
class Load:
    """What the clients do: `tpcb` (7 round trips a transaction) or `select` (one)."""

    name: str
    clients: int

    @property
    def key(self) -> str:
        """As it is called in the report."""
        return f"{self.name}_c{self.clients}"


@dataclass(frozen=True)
class Found:
    """Transactions a second, and the mean time of one in ms."""

    tps: float
    latency_ms: float


class Pgbench:
    """The program of the image's own PostgreSQL: this machine need not have one."""

    def __init__(self, lab: Lab, image: Image, folder: Path) -> None:
        """Takes the program out of the image. Raises RuntimeError when it is not in there."""
        self._lab = lab
        self._program = folder / "pgbench"
        listed = _debugfs(image.disk, "ls -p /usr/lib/postgresql").splitlines()  # /INODE/MODE/UID/GID/NAME/SIZE/
        (major,) = {name for line in listed if line and not (name := line.split("/")[5]).startswith(".")}
        _debugfs(image.disk, f"dump /usr/lib/postgresql/{major}/bin/pgbench {self._program}")
        if not self._program.exists():
            raise RuntimeError(f"there is no pgbench in {image.disk}")
        self._program.chmod(0o755)

    def prepare(self, scale: int) -> None:
        """Makes its tables anew: 100,000 accounts for each unit of `scale`."""
        self._run(["-i", "-q", "-s", str(scale)], _INIT_S)

    def run(self, load: Load, seconds: int) -> Found:
        """So long under this load. Raises RuntimeError when a client fails."""
        select = ["-S"] if load.name == "select" else []
        # A thread a client: they connect at once, and not in turns while the time runs.
        clients = ["-c", str(load.clients), "-j", str(load.clients), "-T", str(seconds), "-n"]
        said = self._run([*clients, *select], seconds + _SPARE_S)
        tps, latency = _TPS.search(said), _LATENCY.search(said)
        if tps is None or latency is None:
            raise RuntimeError(f"pgbench said:\n{said}")
        return Found(float(tps[1]), float(latency[1]))

    def once(self, statement: str) -> None:
        """Runs one statement. Raises RuntimeError when it fails."""
        script = self._program.with_name("once.sql")
        script.write_text(statement + "\n")
        self._run(["-n", "-t", "1", "-f", str(script)], _SPARE_S)

    def _run(self, arguments: list[str], timeout_s: float) -> str:
        server = ["-h", domains.DB_IP4, "-U", "postgres"]
        return self._lab.client.run([str(self._program), *server, *arguments, "postgres"], timeout_s=timeout_s).stdout


def _debugfs(disk: Path, request: str) -> str:
    return subprocess.run(
        ["debugfs", "-R", request, disk], check=True, capture_output=True, text=True, timeout=60
    ).stdout
