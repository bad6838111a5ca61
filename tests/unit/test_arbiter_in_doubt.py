# SPDX-License-Identifier: Apache-2.0
"""An arbiter that answers nonsense in the middle of a decision: both sides ask again, and stand still meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from remusdb.arbiter.register import TRIES
from remusdb.control.codec import plain
from remusdb.core import primary
from remusdb.core import primary_effects as effects
from remusdb.core import primary_events as events
from remusdb.core.messages import Commit, pack
from remusdb.core.standby import Phase
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import RemusError
from remusdb.reasons import Code
from remusdb.worker.claims import claim_alone
from remusdb.worker.decider import Decider
from remusdb.worker.mailbox import Mailbox
from remusdb_agents.backup.replica import Replica
from tests.unit.etcd_gateway import DEEP, HEADER, RECORD, WON, Gateway, gateway_at_work, kvs
from tests.unit.primary_rig import Rig
from tests.unit.test_replica import SILENCE, FakeMachine, ready, replica, with_arbiter
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
    thread = threading.Thread(target=lambda: done.update(plain(replica.promote(SILENCE))))
    thread.start()
    eventually(lambda: asked(gateway, "kv/range", 5) or not thread.is_alive())
    assert thread.is_alive() and replica.phase is Phase.DECIDING
    replica.take(stream, Frame(FrameType.COMMIT, 1, 2, pack(Commit(0, 0, []))))
    assert stream.sent.count(FrameType.ACK) == 1 and replica.status().committed == 1
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
    assert replica.promote(SILENCE).term == 2


class Alone:
    """A primary that lost its backup, whose questions go to the gateway; what it decides is in `rig`."""

    def __init__(self, gateway: Gateway, fails: int = 0) -> None:
        self.rig = Rig(term=0, solo_after_s=0.0)
        self.ended = threading.Event()
        self._arbiter, self._fails = gateway.arbiter, fails
        self._mailbox = Mailbox()
        self.rig.tell(events.Opened(), events.Welcomed(1), events.Begun(1), events.Copied())
        self.rig.cut()
        self.rig.tell(events.Acked(1, 1))
        self._decider = Decider(self.rig.primary, self._mailbox, self._perform)
        self._decider.start()
        self._mailbox.post(events.Lost("b is silent"))

    def _perform(self, effect: effects.Effect) -> None:
        if isinstance(effect, effects.Save) and self._fails:
            self._fails -= 1
            raise RemusError("no space left")
        self.rig.done.append(effect)
        if isinstance(effect, effects.AskArbiter):
            self._mailbox.post(events.ArbiterSaid(claim_alone(self._arbiter, "vm", "a", effect)))
        elif isinstance(effect, effects.End):
            self.ended.set()


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
def test_a_primary_stays_silent_while_its_claim_may_be_lost(
    gateway: Gateway, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(primary, "ASK_AGAIN_S", 0.01)
    gateway.says("kv/range", RECORD, body)
    gateway.says("kv/txn", (500, ""))
    alone = Alone(gateway)
    eventually(lambda: asked(gateway, "kv/range", 5))
    assert not alone.rig.opened and alone.rig.reports[-1].why.code is Code.ARBITER_IN_DOUBT
    gateway.says("kv/range", ALONE)
    assert alone.ended.wait(LIMIT_S)
    assert alone.rig.opened and {"term": 2} in alone.rig.saved


def test_a_primary_whose_disk_is_full_tries_again(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primary, "ASK_AGAIN_S", 0.01)
    gateway.says("kv/range", ALONE)
    alone = Alone(gateway, fails=3)
    assert alone.ended.wait(LIMIT_S)
    assert alone.rig.opened and [saved for saved in alone.rig.saved if "term" in saved][1] == {"term": 2}
