# SPDX-License-Identifier: Apache-2.0
"""An arbiter that answers nonsense in the middle of a decision: both sides ask again, and stand still meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from remusdb.arbiter.register import TRIES
from remusdb.core.messages import Commit, pack
from remusdb.core.pipeline import PrimaryState
from remusdb.core.standby import StandbyState
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import RemusError
from remusdb.worker import solo
from remusdb.worker.solo import Solo
from remusdb_agents.backup.replica import Replica
from tests.unit.etcd_gateway import DEEP, HEADER, RECORD, WON, Gateway, gateway_at_work, kvs
from tests.unit.test_replica import FakeMachine, ready, replica, with_arbiter
from tests.waiting import eventually

__all__ = ["replica"]  # the fixture

NONSENSE = {
    "deep": f'{{"header": {HEADER}, "more": {DEEP}}}',
    "a deep record": kvs(b'{"owner": "b", "term": 2, "x": ' + DEEP.encode() + b"}"),
    "an error with a header": f'{{"header": {HEADER}, "error": "no leader"}}',
    "a header that says little": '{"header": {"cluster_id": "7"}}',
}
TAKEN = kvs(b'{"owner": "b", "term": 2}', "41")
ALONE = kvs(b'{"owner": "a", "term": 2}', "41")
LIMIT_S = 20.0


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with gateway_at_work() as gateway:
        yield gateway


def asked(gateway: Gateway, path: str, times: int) -> bool:
    return gateway.asked.count(f"/v3/{path}") >= times


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
def test_a_replica_acknowledges_nothing_while_its_claim_may_be_won(
    replica: Replica, gateway: Gateway, body: str
) -> None:
    stream: Any = ready(replica)
    FakeMachine.gate.set()
    with_arbiter(replica, gateway.arbiter)
    gateway.says("kv/range", RECORD, RECORD, body)  # before anything is staked; in the claim; and after the swap
    gateway.says("kv/txn", (500, ""))
    gateway.says("maintenance/status", f'{{"header": {HEADER.replace("41", "x")}, "leader": ""}}')
    done: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: done.update(replica.takeover.promote("silence")))
    thread.start()
    eventually(lambda: asked(gateway, "kv/range", 5) or not thread.is_alive())
    assert thread.is_alive() and replica.core.state is StandbyState.DECIDING
    replica.take(stream, Frame(FrameType.COMMIT, 1, 2, pack(Commit(0, 0, []))))
    assert stream.sent.count(FrameType.ACK) == 1 and replica.core.committed == 1
    gateway.says("kv/range", TAKEN)
    thread.join(LIMIT_S)
    assert done["term"] == 2 and done["epoch"] == 1


def test_a_replica_asks_again_although_nobody_can_say_what_the_matter_is(
    replica: Replica, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(replica)
    FakeMachine.gate.set()
    with_arbiter(replica, gateway.arbiter)
    gateway.says("kv/range", RECORD)
    gateway.says("kv/txn", *[(500, "")] * TRIES, WON)

    def no_thread() -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(gateway.arbiter, "health", no_thread)
    assert replica.takeover.promote("silence")["term"] == 2


class Primary:
    """As much of a session as the decision to go on alone needs."""

    def __init__(self, gateway: Gateway) -> None:
        self.told = ""
        self.fails = 0
        self.session: Any = SimpleNamespace(
            order=SimpleNamespace(
                goes_solo=True, host="a", vm="vm", peer=SimpleNamespace(name="b"),
                protection=SimpleNamespace(solo_after_ms=0),
            ),
            pipeline=SimpleNamespace(state=PrimaryState.HELD, term=1, solo=self.go_solo),
            state=SimpleNamespace(term=1), ended=threading.Event(), lock=threading.Lock(),
            figures=SimpleNamespace(set=self.tell), ending=SimpleNamespace(finish_apart=self.finish),
            arbiter=gateway.arbiter, save=self.save,
        )  # fmt: skip
        self.terms: list[int] = []
        self.saved: list[int] = []

    def lose_its_backup(self) -> None:
        solo = Solo(self.session)
        solo.start()
        solo.consider("b is silent")

    def go_solo(self, term: int) -> None:
        self.terms.append(term)

    def save(self, *, term: int) -> None:
        if self.fails:
            self.fails -= 1
            raise RemusError("no space left")
        self.saved.append(term)

    def tell(self, _state: str, reason: str) -> None:
        self.told = reason

    def finish(self, _state: str, _reason: str) -> None:
        self.session.ended.set()


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
def test_a_primary_stays_silent_while_its_claim_may_be_lost(
    gateway: Gateway, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solo, "ASK_AGAIN_S", 0.01)
    primary = Primary(gateway)
    gateway.says("kv/range", RECORD, body)
    gateway.says("kv/txn", (500, ""))
    primary.lose_its_backup()
    eventually(lambda: asked(gateway, "kv/range", 5))
    assert not primary.terms and "output is held" in primary.told
    gateway.says("kv/range", ALONE)
    assert primary.session.ended.wait(LIMIT_S)
    assert primary.terms == primary.saved == [2]


def test_a_primary_whose_disk_is_full_tries_again(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solo, "ASK_AGAIN_S", 0.01)
    primary = Primary(gateway)
    primary.fails = 3
    gateway.says("kv/range", ALONE)
    primary.lose_its_backup()
    assert primary.session.ended.wait(LIMIT_S)
    assert primary.terms == primary.saved == [2]
