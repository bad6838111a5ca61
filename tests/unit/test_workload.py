# SPDX-License-Identifier: Apache-2.0
"""The workload knows three outcomes: acknowledged, reset inside a transaction, and unknown once COMMIT was sent."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools import ledger
from tools.dbms import POSTGRESQL
from tools.workload import Client, verify


class Lost(Exception):
    """The connection was reset."""


class Server:
    """Connections that are reset at the step that the test names, once; the database of `verify`."""

    def __init__(self, reset_at: str) -> None:
        self.reset_at = reset_at
        self.connections = 0
        self.rows: list[tuple[int, int, int]] = []
        self.balances = dict.fromkeys(range(1, ledger.ACCOUNTS + 1), ledger.START_BALANCE)
        self._asked: Any = None

    def connect(self, _server: str) -> Any:
        self.connections += 1
        return self

    @contextlib.contextmanager
    def cursor(self) -> Iterator[Any]:
        yield self

    def execute(self, query: str, _args: Any = None) -> None:
        self._asked = self.rows if "ledger" in query else list(self.balances.items())
        self._step("execute")

    def fetchall(self) -> Any:
        return self._asked

    def commit(self) -> None:
        self._step("commit")

    def close(self) -> None:
        return

    def _step(self, step: str) -> None:
        if step == self.reset_at:
            self.reset_at = ""
            raise Lost("reset")


def client_of(server: Server, folder: Path, transactions: int = 0) -> Client:
    """One that has done its work until the third acknowledgement."""
    stop, go = threading.Event(), threading.Event()
    go.set()
    dbms = dataclasses.replace(POSTGRESQL, connect=server.connect, errors=(Lost,))
    acked = os.open(folder / "acked", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    client = Client(1, dbms, "", acked, stop, go, transactions)
    original = server.commit

    def commit() -> None:
        original()
        if client.seq >= 4:
            stop.set()

    server.commit = commit  # type: ignore[method-assign]
    client.run()
    os.close(acked)
    return client


@pytest.mark.parametrize(("step", "unknown"), [("execute", []), ("commit", [(1, 1)])])
def test_a_transaction_is_unknown_from_its_commit_on_only(step: str, unknown: list[object], tmp_path: Path) -> None:
    client = client_of(Server(step), tmp_path)
    assert client.unknown == unknown
    assert [reset["inside"] for reset in client.resets] == [True]
    assert [ack.seq for ack in ledger.read_acks(tmp_path / "acked")] == [2, 3, 4]


def test_a_client_connects_again_after_so_many_transactions(tmp_path: Path) -> None:
    server = Server("")
    assert client_of(server, tmp_path, transactions=2).resets == []
    assert server.connections == 2


@pytest.mark.parametrize(
    ("release", "inside", "complaints"),
    [("all", True, 1), ("all", False, 1), ("commit", True, 0), ("commit", False, 1)],
)
def test_only_commit_protection_may_reset_and_only_inside_a_transaction(
    release: str, inside: bool, complaints: int, tmp_path: Path
) -> None:
    reset = f'{{"client": 1, "at_ns": 1, "error": "reset", "inside": {str(inside).lower()}}}'
    (tmp_path / "report.json").write_text(f'{{"resets": [{reset}], "unknown": [], "stuck": []}}')
    dbms = dataclasses.replace(POSTGRESQL, connect=Server("").connect, before_reading=(), damage=lambda _server: [])
    judged = verify(dbms, "", tmp_path, False, release)
    assert len(judged["complaints"]) == complaints  # type: ignore[arg-type]
    assert judged["reset_inside"] == inside


def test_a_row_of_a_transaction_that_was_reset_before_its_commit_is_a_complaint(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"resets": [], "unknown": [], "stuck": []}')
    server = Server("")
    moved = ledger.transfer(1, 1)
    server.rows.append((1, 1, moved.amount))
    server.balances[moved.source] -= moved.amount
    server.balances[moved.target] += moved.amount
    dbms = dataclasses.replace(POSTGRESQL, connect=server.connect, before_reading=(), damage=lambda _server: [])
    judged = verify(dbms, "", tmp_path, False, "commit")
    assert "though its client was told otherwise" in str(judged["complaints"])
