# SPDX-License-Identifier: Apache-2.0
"""Commit protection under any schedule: servers that answer, a gate that holds, cuts, commits, a crash at each step.

The gate's queue and the rule are the product's. What is checked after each step, as if the host died there and the
backup went on from the last epoch that it committed:

- a client has no byte that the survivor has not sent, except in connections that this epoch's list breaks;
- no byte of an answer that ends or begins a transaction, or is of a statement alone, ever left early;
- what a client was told is committed is so in the survivor;
- no connection is broken that was not inside a transaction when its server's bytes had come that far.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from remusdb.core.release.frames import ACK, FIN, OpenFlow
from remusdb.core.release.rule import CommitRule
from remusdb.core.release.settings import ReleaseSettings
from remusdb.net.hold import HoldQueue
from tests.unit.postgresql_words import (
    ALONE,
    BEGIN,
    CHAIN,
    COMMIT,
    FAILED,
    GREETING,
    ROWS,
    UPDATE,
    complete,
    message,
    ready,
)
from tests.unit.release_frames import frame, hello

LEASE = 1e9
_NUMBERS = 1 << 32
WIDE = message("T", bytes(30)) + message("D", bytes(3000)) + complete("SELECT 1") + ready("T")
AT_ONCE = complete("COMMIT") + complete("BEGIN") + complete("UPDATE 1") + ready("T")  # several statements in one
# In a state: what is answered, the state after it, whether something is committed by it.
ANSWERS = {
    "idle": [(BEGIN, "open", False), (ALONE, "idle", True), (FAILED[:-1] + b"I", "idle", False)],
    "open": [
        *[(UPDATE, "open", False), (ROWS, "open", False), (WIDE, "open", False)] * 2,
        *[(COMMIT, "idle", True), (CHAIN, "open", True), (AT_ONCE, "open", True), (FAILED, "failed", False)],
    ],
    "failed": [(complete("ROLLBACK") + ready("I"), "idle", False), (complete("ROLLBACK") + ready("T"), "open", False)],
}
KEEPS = (UPDATE, ROWS, WIDE)


class Broken(AssertionError):
    """A promise that did not hold."""


@dataclass
class Session:
    """One connection of a guest's server, and what its client has."""

    port: int
    first: int  # sequence number of its first byte
    stream: bytearray = field(default_factory=bytearray)
    waits: bytearray = field(default_factory=bytearray)  # for each byte, whether it must not leave early
    states: list[tuple[int, str]] = field(default_factory=list)  # from which byte on
    commits: list[int] = field(default_factory=list)  # where the answer begins by which each was made
    sent: int = 0
    has: int = 0  # of the client: behind the last byte that it was sent

    def answer(self, answer: bytes, state: str, commits: bool) -> None:
        if commits:
            self.commits.append(len(self.stream))
        self.stream += answer
        self.waits += bytes([answer not in KEEPS]) * len(answer)
        self.states.append((len(self.stream), state))

    @property
    def state(self) -> str:
        return self.states[-1][1] if self.states else "idle"

    def was_open(self, at: int) -> bool:
        """Whether a transaction was open when its server's bytes had come so far."""
        known = [state for begin, state in self.states if begin <= at]
        return bool(known) and known[-1] == "open"


@dataclass
class Epoch:
    """What the backup has of it, once it is committed."""

    produced: dict[int, int]
    flows: list[OpenFlow]


class World:
    """One schedule. `mistakes` are made by subclasses of the product's parts."""

    def __init__(self, seed: int, queue: type[HoldQueue] = HoldQueue, rule: type[CommitRule] = CommitRule) -> None:
        self.random = random.Random(seed)
        settings = ReleaseSettings(postgresql_ports=(5432,), flows_max=self.random.choice([2, 8]))
        self.gate = queue(1 << 20, rule(settings))
        self.gate.hold()
        self.sessions: list[Session] = []
        self.epochs: list[Epoch] = [Epoch({}, [])]
        self.committed = 0
        self.early_bytes = 0
        self.ports = 40000
        for _ in range(3):
            self._connect()
        self._cut()
        self._commit()

    def run(self, steps: int) -> None:
        """Broken, if a promise does not hold somewhere."""
        for _ in range(steps):
            self._step()
            self._check()

    def _step(self) -> None:
        session = self.random.choice(self.sessions)
        unsent = len(session.stream) - session.sent
        match self.random.choices(range(9), [6, 12, 1, 2, 2, 5, 5, 0.2, 1])[0]:
            case 0:
                session.answer(*self.random.choice(ANSWERS[session.state]))
            case 1 if unsent:
                self._send(session, session.sent, self._size(unsent))
            case 2 if unsent:  # lost before the gate
                session.sent += self._size(unsent)
            case 3 if session.sent:  # again
                at = self.random.randrange(session.sent)
                self._send(session, at, self._size(len(session.stream) - at))
            case 4:
                self._pass(frame(session.first + session.sent, client_port=session.port))
            case 5:
                self._cut()
            case 6:
                self._commit()
            case 7:
                last = frame(session.first + session.sent, client_port=session.port, flags=FIN | ACK)
                self._pass(last)
                self.sessions.remove(session)
                self._connect()
            case 8 if unsent == 0 and session.state == "open":  # a client that asks on at once
                session.answer(UPDATE, "open", False)
                self._send(session, session.sent, len(UPDATE))

    def _size(self, most: int) -> int:
        return self.random.choice([most, self.random.randint(1, most), min(most, 7)])

    def _connect(self) -> None:
        first = self.random.choice([1, 5000, _NUMBERS - 100])
        self.ports += 1
        session = Session(self.ports, first)
        self.sessions.append(session)
        self._pass(hello(first - 1, client_port=session.port))
        session.answer(GREETING, "idle", False)

    def _send(self, session: Session, at: int, size: int) -> None:
        session.sent = max(session.sent, at + size)
        self._pass(frame(session.first + at, bytes(session.stream[at : at + size]), client_port=session.port))

    def _pass(self, data: bytes) -> None:
        self.gate.accept([data], 1.0)
        while self.gate.early:
            held = self.gate.early.popleft()
            self._deliver(held.frame, early=True)
            self.gate.sent_early(held, ok=True)

    def _deliver(self, data: bytes, *, early: bool) -> None:
        port, seq = int.from_bytes(data[46:48], "big"), int.from_bytes(data[48:52], "big")
        size = len(data) - 64
        for session in self.sessions:
            if session.port == port and size:
                at = (seq - session.first) % _NUMBERS
                if early and any(session.waits[at : at + size]):
                    raise Broken("an answer that must wait left early")
                self.early_bytes += size * early
                session.has = max(session.has, at + size)

    def _cut(self) -> None:
        self.gate.mark(len(self.epochs))
        self.gate.name_flows()
        produced = {session.port: len(session.stream) for session in self.sessions}
        self.epochs.append(Epoch(produced, list(self.gate.flows)))
        for flow in self.gate.flows:
            for session in self.sessions:
                if session.port == flow.key.client_port and not session.was_open(self._seen(session, flow)):
                    raise Broken("a connection would be broken that was not inside a transaction")

    @staticmethod
    def _seen(session: Session, flow: OpenFlow) -> int:
        return (flow.next_seq - session.first) % _NUMBERS

    def _commit(self) -> None:
        if self.committed + 1 < len(self.epochs):
            self.committed += 1
            self.gate.release(self.committed, LEASE)
            while self.gate.sending:
                held = self.gate.sending.popleft()
                self._deliver(held.frame, early=False)
                self.gate.sent(held, ok=True)
                self.gate.left(held)

    def _check(self) -> None:
        epoch = self.epochs[self.committed]
        broken = {flow.key.client_port for flow in epoch.flows}
        for session in self.sessions:
            produced = epoch.produced.get(session.port, 0)
            if session.has > produced and session.port not in broken:
                raise Broken("a client has bytes that the survivor will send anew")
            if any(produced <= at < session.has for at in session.commits):
                raise Broken("a client was told of a commit that is lost")
