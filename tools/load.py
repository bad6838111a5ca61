# SPDX-License-Identifier: Apache-2.0
"""The workload as a process on the lab's client: started, paused, looked at, ended, and judged."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remusdb.deadline import Deadline, poll_until
from tools import ledger
from tools.dbms import POSTGRESQL, Dbms
from tools.lab import Lab, domains

CLIENTS = 8
SERVERS = (domains.DB_IP4, domains.DB_IP6)  # client n uses the address n of these, round and round
_PAUSE_S = 60.0  # for the transactions in flight; a takeover may be among what they wait for
_VERIFY_S = 240.0


class Tail:
    """Reads a record that grows: each look gives what is new. Of one thread alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_bytes = 0

    def new(self) -> list[ledger.Ack]:
        """What was acknowledged since the last look. A last line that is not complete yet is left for the next."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        return [ledger.Ack(*map(int, line.split())) for line in whole.splitlines()]


class Load:
    """One run of the workload. `acks` grows with each look at its record."""

    def __init__(
        self, lab: Lab, folder: Path, clients: int = CLIENTS, dbms: Dbms = POSTGRESQL, transactions: int = 0
    ) -> None:
        """Starts it; every second client uses IPv6. `transactions`: then a client connects again; 0: never.

        Its record goes to `folder`/record, its words to `folder`/workload.log.
        """
        self._lab = lab
        self._record = folder / "record"
        shutil.rmtree(self._record, ignore_errors=True)  # of an earlier run: its rows are not in this database
        self._tail = self.tail()
        self.clients = clients
        self._dbms = dbms
        self._acks: list[ledger.Ack] = []
        command = [sys.executable, "-m", "tools.workload", "run", "--clients", str(clients)]
        command += ["--transactions", str(transactions)]
        self._process = lab.client.popen([*command, *self._where], log=folder / "workload.log")

    @property
    def _where(self) -> list[str]:
        servers = [option for address in SERVERS for option in ("--server", address)]
        return ["--db", self._dbms.key, *servers, "--record", str(self._record)]

    @property
    def acks(self) -> list[ledger.Ack]:
        """All that was acknowledged so far, in the order of the record. Only what is new is read."""
        self._acks += self._tail.new()
        return self._acks

    def tail(self) -> Tail:
        """Another reader of the same record, from its beginning: for another thread."""
        return Tail(self._record / "acked")

    def since(self, at_ns: int) -> list[ledger.Ack]:
        """The acknowledgements after a monotonic time."""
        found = []
        for ack in reversed(self.acks):
            if ack.at_ns < at_ns - 10**9:  # threads write their lines nearly in order
                break
            if ack.at_ns > at_ns:
                found.append(ack)
        return found[::-1]

    def all_work(self, at_ns: int) -> bool:
        """Whether every client had an acknowledgement after that time."""
        return len({ack.client for ack in self.since(at_ns)}) == self.clients

    def newest(self) -> dict[int, int]:
        """Of each client the newest transaction that was acknowledged."""
        found: dict[int, int] = {}
        for ack in self.acks:
            found[ack.client] = max(found.get(ack.client, 0), ack.seq)
        return found

    @property
    def acked_ipv6(self) -> int:
        """How many transactions were acknowledged to clients that use IPv6."""
        return sum(":" in SERVERS[(ack.client - 1) % len(SERVERS)] for ack in self.acks)

    def outage_ms(self, at_ns: int) -> float:
        """The longest wait of a client since just before that time; see `ledger.outage_ms`."""
        # 10 s before are enough to hold every client's last acknowledgement, or it had none to wait for.
        return round(ledger.outage_ms(self.since(at_ns - 10 * 10**9), at_ns, time.monotonic_ns()), 1)

    def pause(self, timeout_s: float = _PAUSE_S) -> None:
        """Every client finishes its transaction and rests. TimeoutError when one cannot."""
        self._process.send_signal(signal.SIGUSR1)
        wait_for((self._record / "report.json").exists, timeout_s, "the clients do not come to rest")

    def resume(self) -> None:
        """The clients go on."""
        self._process.send_signal(signal.SIGUSR2)
        wait_for(lambda: not (self._record / "report.json").exists(), 10.0, "the clients do not go on")

    @property
    def report(self) -> dict[str, Any]:
        """The report of a load that rests or has ended."""
        found: dict[str, Any] = json.loads((self._record / "report.json").read_text())
        return found

    def stop(self) -> None:
        """Ends it; what is in flight may take its time."""
        self._process.terminate()
        self._process.wait(30.0)

    def verify(self, quick: bool = False, release: str = "all") -> dict[str, Any]:
        """What the database holds against the record, of a load that rests or has ended.

        `quick`: the DBMS's own tools do not look at its files. `release`: as the VM's setting was.

        Raises RuntimeError when the database cannot be read.
        """
        command = [sys.executable, "-m", "tools.workload", "verify", *(["--quick"] if quick else [])]
        command += ["--release", release]
        done = self._lab.client.run([*command, *self._where], check=False, timeout_s=_VERIFY_S)
        try:
            judged: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise RuntimeError(f"the database cannot be verified:\n{done.stderr[-2000:]}") from None
        return judged


def wait_for(done: Callable[[], object], timeout_s: float, otherwise: str, every_s: float = 0.1) -> None:
    """Until it is true. TimeoutError with these words after that time."""
    if not poll_until(done, Deadline.after(timeout_s), every_s):
        raise TimeoutError(f"{otherwise} after {timeout_s:.0f} s")


def sql(lab: Lab, statement: str, timeout_s: float = 30.0, database: str = "bank") -> str:
    """PostgreSQL's answer to one statement, from the lab's client. RuntimeError when there is none."""
    command = ["psql", "-h", domains.DB_IP4, "-U", "postgres", "-Atc", statement, database]
    return lab.client.run(command, timeout_s=timeout_s, env={"PGCONNECT_TIMEOUT": "5"}).stdout


def accepts(lab: Lab, dbms: Dbms = POSTGRESQL) -> bool:
    """Whether the VM's DBMS answers."""
    return lab.client.run(dbms.answers(domains.DB_IP4), check=False).returncode == 0
