# SPDX-License-Identifier: Apache-2.0
"""Clients of the bank database that write down what the server acknowledged.

    python -m tools.workload run --db DBMS --server ADDRESS [--server ADDRESS] --record DIR [--clients N]
        [--transactions N]
    python -m tools.workload verify --db DBMS --server ADDRESS --record DIR [--quick]
        [--release all|commit]

`run` ends by SIGTERM or SIGINT; its clients share the server's addresses in turn. It appends a line to DIR/acked for
each acknowledged transaction and writes DIR/report.json when it ends. SIGUSR1 makes it pause: every client finishes its
transaction and keeps its connection; DIR/report.json is there once all have. SIGUSR2 removes that file and lets them go
on.
`verify` prints one JSON object and exits with 1 if the database does not hold what was acknowledged; it needs the
report of a `run` that has ended or pauses. With `--release commit` (commit protection) a connection may have been reset
inside a transaction, which then must not be there.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import signal
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

from tools import ledger
from tools.dbms import BY_KEY, Connection, Cursor, Dbms

_FINISH_S = 10.0  # for the transactions in flight when the workload is stopped
_RETRY_S = 0.2


class Client(threading.Thread):
    """One connection in a loop of transactions.

    Invariant: `seq` is the one transaction whose outcome is not known yet; every earlier one is saved as
    acknowledged, in `unknown` (COMMIT was sent, no answer came), or was never committed. A lost connection goes to
    `resets` before a new one is tried.
    """

    def __init__(
        self,
        number: int,
        dbms: Dbms,
        server: str,
        acked_fd: int,
        stop: threading.Event,
        go: threading.Event,
        transactions: int = 0,
    ) -> None:
        """`transactions`: of a connection; 0: as many as it lasts for."""
        super().__init__(name=f"client-{number}", daemon=True)
        self.number = number
        self.seq = 0
        self.in_transaction = self.commit_sent = False
        self.resting = False  # it waits to be let on
        self.unknown: list[tuple[int, int]] = []
        self.resets: list[dict[str, object]] = []
        self._dbms = dbms
        self._server = server
        self._acked_fd = acked_fd
        self._stop_asked = stop
        self._go = go
        self._transactions = transactions

    def run(self) -> None:
        """Transfers, one after the other, until it is told to stop; connects again after each error."""
        while not self._stop_asked.is_set():
            try:
                with closing(self._dbms.connect(self._server)) as connection, connection.cursor() as cursor:
                    last = self.seq + self._transactions
                    while self._may_go():
                        self._transact(connection, cursor)
                        if self.seq == last:
                            break
            except self._dbms.errors as error:
                if self.commit_sent:
                    self.unknown.append((self.number, self.seq))
                text = f"{type(error).__name__}: {error}".strip()
                reset = {"client": self.number, "at_ns": time.monotonic_ns(), "error": text}
                self.resets.append({**reset, "inside": self.in_transaction})
                self.in_transaction = self.commit_sent = False
                self._stop_asked.wait(_RETRY_S)

    def _may_go(self) -> bool:
        """Waits through a pause; False when it is time to end."""
        self.resting = True
        self._go.wait()
        self.resting = False
        return not self._stop_asked.is_set()

    def _transact(self, connection: Connection, cursor: Cursor) -> None:
        """Each statement is a round trip of its own, as in most applications."""
        self.seq += 1
        self.in_transaction = True
        moved = ledger.transfer(self.number, self.seq)
        changes = [(-moved.amount, moved.source), (moved.amount, moved.target)]
        changes.sort(key=lambda change: change[1])  # all in one order, so that there is no deadlock
        cursor.execute("INSERT INTO ledger VALUES (%s, %s, %s)", (self.number, self.seq, moved.amount))
        for change in changes:
            cursor.execute("UPDATE accounts SET balance = balance + %s WHERE id = %s", change)
        self.commit_sent = True
        connection.commit()
        # One write, so that lines of several threads do not mix and none is lost if this process is killed.
        os.write(self._acked_fd, f"{self.number} {self.seq} {time.monotonic_ns()}\n".encode())
        self.in_transaction = self.commit_sent = False


def run(dbms: Dbms, servers: list[str], record: Path, clients: int, transactions: int = 0) -> int:
    """Runs the clients until a signal. Returns 0; what went wrong is in the report."""
    record.mkdir(parents=True, exist_ok=True)
    acked_fd = os.open(record / "acked", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
    stop, go, wake = threading.Event(), threading.Event(), threading.Event()
    go.set()

    def ordered(signum: int, _frame: object) -> None:
        if signum == signal.SIGUSR1:
            go.clear()
        else:
            if signum != signal.SIGUSR2:
                stop.set()
            go.set()
        wake.set()

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, ordered)
    shared = itertools.cycle(servers)
    threads = [Client(number, dbms, next(shared), acked_fd, stop, go, transactions) for number in range(1, clients + 1)]
    for thread in threads:
        thread.start()
    report = record / "report.json"
    while not stop.is_set():
        # Looked at again and again only while a pause begins: a client may be in the middle of a transaction.
        pausing = not go.is_set() and not report.exists()
        wake.wait(0.02 if pausing else None)
        wake.clear()
        if go.is_set():
            report.unlink(missing_ok=True)
        elif pausing and all(thread.resting for thread in threads):
            _write_report(report, threads, [])
    stopped_ns = time.monotonic_ns()
    for thread in threads:
        thread.join(max(0.0, _FINISH_S - (time.monotonic_ns() - stopped_ns) / 1e9))
    _write_report(report, threads, [thread.number for thread in threads if thread.is_alive()], stopped_ns)
    sys.stdout.flush()
    os._exit(0)  # a stuck thread is inside its client library, and would hold up an ordinary exit


def _write_report(path: Path, threads: list[Client], stuck: list[int], stopped_ns: int | None = None) -> None:
    """Whole or not at all: somebody may be waiting for the file."""
    report = {
        "clients": len(threads),
        "stopped_ns": stopped_ns or time.monotonic_ns(),
        "resets": [reset for thread in threads for reset in thread.resets],
        "unknown": [name for thread in threads for name in thread.unknown]
        + [(thread.number, thread.seq) for thread in threads if thread.commit_sent],
        "stuck": stuck,
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report))
    partial.rename(path)


def verify(dbms: Dbms, server: str, record: Path, quick: bool, release: str = "all") -> dict[str, object]:
    """Compares the database with the record, and unless `quick` has the DBMS's own tools look at its files.

    Gives the fields of `ledger.Verdict`, `reconnects`, and of these `reset_inside` a transaction, which the `release`
    "commit" allows. Raises one of `dbms.errors` when the database cannot be read.
    """
    acks = ledger.read_acks(record / "acked")
    report = json.loads((record / "report.json").read_text())
    with closing(dbms.connect(server)) as connection, connection.cursor() as cursor:
        for statement in dbms.before_reading:
            cursor.execute(statement)
        cursor.execute("SELECT client, seq, amount FROM ledger")
        rows = list(cursor.fetchall())
        cursor.execute("SELECT id, balance FROM accounts")
        balances: dict[int, int] = dict(cursor.fetchall())
    verdict = ledger.judge(acks, {(client, seq) for client, seq in report["unknown"]}, rows, balances)
    inside = [reset for reset in report["resets"] if reset["inside"]]
    wrong = [reset for reset in report["resets"] if release == "all" or not reset["inside"]]
    verdict.complaints += [f"connection lost: {reset['error']}" for reset in wrong[:10]]
    verdict.complaints += [f"client {client} never got an answer" for client in report["stuck"]]
    verdict.complaints += [] if quick else dbms.damage(server)
    reconnects = len(report["resets"]) + len(report["stuck"])
    return {**dataclasses.asdict(verdict), "reconnects": reconnects, "reset_inside": len(inside)}


def main() -> int:
    """As called on the command line; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.workload")
    parser.add_argument("action", choices=["run", "verify"])
    parser.add_argument("--db", required=True, choices=list(BY_KEY), help="the DBMS")
    parser.add_argument("--server", required=True, action="append", help="address of the database; several for `run`")
    parser.add_argument("--record", required=True, type=Path, help="folder of the record")
    parser.add_argument("--clients", type=int, default=8, help="connections (default: 8)")
    parser.add_argument("--transactions", type=int, default=0, help="of a connection (default: no end)")
    parser.add_argument("--quick", action="store_true", help="verify without the DBMS's own tools")
    parser.add_argument("--release", choices=["all", "commit"], default="all", help="the VM's setting")
    args = parser.parse_args()
    if args.action == "run":
        return run(BY_KEY[args.db], args.server, args.record, args.clients, args.transactions)
    result = verify(BY_KEY[args.db], args.server[0], args.record, args.quick, args.release)
    print(json.dumps(result))
    return 1 if result["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())
