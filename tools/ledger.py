# SPDX-License-Identifier: Apache-2.0
"""The workload's record of what the server acknowledged, and what follows from it. No database, no clock.

A transaction is named (client, seq). Its transfer follows from that name alone, so the ledger's rows say what every
balance must be, and a transaction that was applied by half shows.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ACCOUNTS, START_BALANCE = 1000, 1000  # as bank.sql makes them


class Ack(NamedTuple):
    """A COMMIT that the client saw succeed, with time.monotonic_ns() of that."""

    client: int
    seq: int
    at_ns: int


class Transfer(NamedTuple):
    """So much from one account to another."""

    source: int
    target: int
    amount: int


def transfer(client: int, seq: int) -> Transfer:
    """What transaction (client, seq) moves."""
    chance = random.Random(client << 40 | seq)
    source, target = chance.sample(range(1, ACCOUNTS + 1), 2)
    return Transfer(source, target, chance.randint(1, 100))


def read_acks(path: Path) -> list[Ack]:
    """The record of a workload that may still run: a last line that is not complete yet is left out."""
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    return [Ack(*map(int, line.split())) for line in whole.splitlines()]


def tps(acks: Iterable[Ack], start_ns: int, end_ns: int) -> float:
    """Transactions a second that were acknowledged between two monotonic times."""
    count = sum(start_ns <= ack.at_ns < end_ns for ack in acks)
    return count * 1e9 / (end_ns - start_ns)


def outage_ms(acks: Iterable[Ack], at_ns: int, end_ns: int) -> float:
    """The longest time without an acknowledgement that any client saw from just before `at_ns` on.

    A gap begins at the client's last acknowledgement before `at_ns`; one that never ends lasts until `end_ns`.
    """
    clients: dict[int, list[int]] = {}
    for ack in acks:
        clients.setdefault(ack.client, []).append(ack.at_ns)
    worst = 0
    for times in clients.values():
        times.sort()
        before = [time for time in times if time <= at_ns][-1:]
        points = before + [time for time in times if at_ns < time < end_ns] + [end_ns]
        worst = max(worst, *(later - earlier for earlier, later in pairwise(points)), 0)
    return worst / 1e6


@dataclass
class Verdict:
    """What the survivor holds against what was acknowledged. `complaints` is empty if all is well."""

    acked: int
    lost: int
    duplicated: int
    complaints: list[str] = field(default_factory=list)


def judge(
    acks: list[Ack],
    in_flight: set[tuple[int, int]],
    rows: list[tuple[int, int, int]],
    balances: dict[int, int],
) -> Verdict:
    """Compares the ledger's rows (client, seq, amount) and the accounts' balances with the record.

    `in_flight` names the transactions whose outcome no client learned: each may be there or not.
    """
    acked = {(ack.client, ack.seq) for ack in acks}
    found = Counter((client, seq) for client, seq, _ in rows)
    lost = sorted(acked - found.keys())
    duplicated = sorted(name for name, count in found.items() if count > 1)
    verdict = Verdict(len(acked), len(lost), len(duplicated))
    if lost:
        verdict.complaints.append(f"acknowledged and lost: {lost[:10]}")
    if duplicated:
        verdict.complaints.append(f"more than once in the ledger: {duplicated[:10]}")
    if unexplained := sorted(found.keys() - acked - in_flight):
        verdict.complaints.append(f"in the ledger, though its client was told otherwise: {unexplained[:10]}")
    if wrong := [row for row in rows if transfer(row[0], row[1]).amount != row[2]]:
        verdict.complaints.append(f"rows with another amount than was written: {wrong[:10]}")
    verdict.complaints += _judge_balances(found.keys(), balances)
    return verdict


def _judge_balances(done: Iterable[tuple[int, int]], balances: dict[int, int]) -> list[str]:
    expected = dict.fromkeys(range(1, ACCOUNTS + 1), START_BALANCE)
    for client, seq in done:
        moved = transfer(client, seq)
        expected[moved.source] -= moved.amount
        expected[moved.target] += moved.amount
    complaints = []
    if sum(balances.values()) != ACCOUNTS * START_BALANCE:
        complaints.append(f"balances add up to {sum(balances.values())}, not to {ACCOUNTS * START_BALANCE}")
    if expected != balances:
        wrong = [account for account in expected if balances.get(account) != expected[account]]
        complaints.append(f"accounts whose balance is not what the ledger says: {wrong[:10]}")
    return complaints
