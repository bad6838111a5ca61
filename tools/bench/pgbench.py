# SPDX-License-Identifier: Apache-2.0
"""pgbench on the lab's client, against the PostgreSQL of the lab's VM."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.lab import Lab, domains
from tools.lab.image import Image

_INIT_S, _SPARE_S = 180.0, 120.0
_LONG_S = 3600
_LONGER = (1, 4, 16)  # a busy machine may need all of a short time to connect 32 clients
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
    """Transactions a second, and what one takes in ms: the mean, the median, and what 1 % exceed."""

    tps: float
    latency_ms: float
    latency_ms_p50: float
    latency_ms_p99: float


class Pgbench:
    """The program of the image's own PostgreSQL: this machine need not have one."""

    def __init__(self, lab: Lab, image: Image, folder: Path, server: str = domains.DB_IP4) -> None:
        """Takes the program out of the image. Raises RuntimeError when it is not in there."""
        self._lab = lab
        self._server = ("-h", server, "-U", "postgres")
        self._program = folder / "pgbench"
        listed = debugfs(image.disk, "ls -p /usr/lib/postgresql").splitlines()  # /INODE/MODE/UID/GID/NAME/SIZE/
        (self._major,) = {name for line in listed if line and not (name := line.split("/")[5]).startswith(".")}
        debugfs(image.disk, f"dump /usr/lib/postgresql/{self._major}/bin/pgbench {self._program}")
        if not self._program.exists():
            raise RuntimeError(f"there is no pgbench in {image.disk}")
        self._program.chmod(0o755)

    def prepare(self, scale: int) -> None:
        """Makes its tables anew: 100,000 accounts for each unit of `scale`."""
        self._run(["-i", "-q", "-s", str(scale)], _INIT_S)

    def run(self, load: Load, seconds: int) -> Found:
        """So long under this load. Raises RuntimeError when a client fails."""
        for longer in _LONGER:
            found = self._once(load, seconds * longer)
            if found is not None:
                return found
        raise RuntimeError(f"{load.key}: not one transaction in {seconds * _LONGER[-1]} s")

    def _once(self, load: Load, seconds: int) -> Found | None:
        """None: no client got as far as the end of a transaction."""
        select = ["-S"] if load.name == "select" else []
        # A thread a client: they connect at once, and not in turns while the time runs.
        clients = ["-c", str(load.clients), "-j", str(load.clients), "-T", str(seconds), "-n"]
        logs = self._program.with_name("transactions")
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir()
        said = self._run([*clients, *select, "--log", f"--log-prefix={logs / 'of'}"], seconds + _SPARE_S)
        took = sorted(_took_ms(logs))
        tps, latency = _TPS.search(said), _LATENCY.search(said)
        if not took:
            return None
        if tps is None or latency is None:
            raise RuntimeError(f"pgbench said:\n{said}")
        return Found(float(tps[1]), float(latency[1]), statistics.median(took), took[len(took) * 99 // 100])

    def inside(self, load: Load, seconds: int) -> float:
        """Transactions a second of clients that are in the VM, over its unix socket: none waits for any output."""
        select = " -S" if load.name == "select" else ""
        program = f"/usr/lib/postgresql/{self._major}/bin/pgbench -n -c {load.clients} -T {seconds}{select} postgres"
        lines = f"CREATE TEMP TABLE said (line text); COPY said FROM PROGRAM '{program} 2>&1'; SELECT line FROM said"
        command = ["psql", *self._server, "-Atqc", lines, "postgres"]
        said = self._lab.client.run(command, timeout_s=seconds + _SPARE_S).stdout
        tps = _TPS.search(said)
        if tps is None:
            raise RuntimeError(f"pgbench in the VM said:\n{said}")
        return float(tps[1])

    def once(self, statement: str) -> None:
        """Runs one statement. Raises RuntimeError when it fails."""
        script = self._program.with_name("once.sql")
        script.write_text(statement + "\n")
        self._run(["-n", "-t", "1", "-f", str(script)], _SPARE_S)

    @contextmanager
    def again(self, statement: str) -> Iterator[None]:
        """One client runs it again and again in the meantime. Raises RuntimeError when it fails."""
        script = self._program.with_name("again.sql")
        script.write_text(statement + "\n")
        with self._meanwhile(["-f", str(script)]) as process:
            yield
            if process.poll() is not None:
                raise RuntimeError(f"pgbench ended: exit {process.returncode}")

    @contextmanager
    def loaded(self, load: Load) -> Iterator[None]:
        """Under this load meanwhile, which may fail."""
        clients = ["-c", str(load.clients), "-j", str(load.clients)]
        with self._meanwhile([*clients, *(["-S"] if load.name == "select" else [])]):
            yield

    @contextmanager
    def _meanwhile(self, arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
        command = [str(self._program), *self._server, "-n", "-T", str(_LONG_S), *arguments, "postgres"]
        with self._lab.client.popen(command, log=self._program.with_name("meanwhile.log")) as process:
            try:
                yield process
            finally:
                process.terminate()

    def _run(self, arguments: list[str], timeout_s: float) -> str:
        return self._lab.client.run(
            [str(self._program), *self._server, *arguments, "postgres"], timeout_s=timeout_s
        ).stdout


def _took_ms(logs: Path) -> Iterator[float]:
    """Of every transaction. A line: client, number, us that it took, script, when."""
    for log in logs.iterdir():
        for line in log.read_text().splitlines():
            yield int(line.split()[2]) / 1000


def debugfs(disk: Path, request: str) -> str:
    """What debugfs says to one request of a file system that is not mounted."""
    return subprocess.run(
        ["debugfs", "-R", request, disk], check=True, capture_output=True, text=True, timeout=60
    ).stdout
