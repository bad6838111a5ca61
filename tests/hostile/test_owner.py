# SPDX-License-Identifier: Apache-2.0
"""Whose VM it is: a certificate and a high term are no claim to a VM of somebody else's."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remusdb.arbiter.arbiter import Arbiter as Register
from remusdb.config import Arbiter
from remusdb.core.messages import Welcome
from remusdb.core.ownership import Ownership, Verdict, open_session
from remusdb.core.wire import FrameType
from tests.hostile.rig import Caller, Rig, eventually
from tests.hostile.sayings import hello, uuid_of
from tools.lab.etcd import Etcd

TERMS = (0, 6, 7, 8, 9, 99, 1 << 20, 1 << 40, (1 << 62) - 1)


@pytest.fixture
def etcd(network: None, tmp_path: Path) -> Iterator[Etcd]:
    """On this namespace's loopback."""
    made = Etcd(None, tmp_path)
    made.start()
    yield made
    made.kill()


def committed(rig: Rig, epochs: int = 1) -> tuple[Caller, int]:
    """gamma protects `pg` to here; its replica holds so many epochs. The call, and the term."""
    caller, welcome = rig.welcomed(hello("pg", "gamma"), "gamma")
    for epoch in range(1, epochs + 1):
        caller.commit(welcome.term, epoch)
        frame = caller.hear(FrameType.ACK)
        assert frame is not None and frame.epoch == epoch
    return caller, welcome.term


def strangers(rig: Rig, vm: str = "pg", *, resume: bool = True, **changes: Any) -> None:
    """alpha says HELLO for gamma's VM in every way: each is refused, and not one makes alpha put a VM away, or go on
    as if it had been given this one."""
    for term in TERMS:
        for again in (False, True) if resume else (False,):
            refuse = rig.refused(hello(vm, "alpha", term=term, resume=again, **changes), "alpha")
            assert not refuse.fenced and not refuse.renounced, (term, again, refuse)
            assert refuse.reason


def test_a_vm_that_runs_here_is_not_quarantined_for_a_stranger(rig: Rig) -> None:
    roles = ("promoted", "protected", "solo", "seeding")
    for role in roles:
        known = {"uuid": uuid_of(role), "armed": True, "owner": "beta", "peer": "gamma", "reason": "it runs here"}
        rig.remember(role, role=role, term=7, **known)
    rig.start()
    with rig.unchanged():
        for vm in roles:
            for identity in (uuid_of(vm), str(uuid.uuid4())):
                for term in TERMS:
                    fields = hello(vm, "alpha", term=term, uuid=identity)
                    refuse = rig.refused(fields, "alpha")
                    assert not refuse.renounced
                    assert identity == uuid_of(vm) or not refuse.fenced, "another VM of the same name is no old one"
    assert not rig.fences


def test_a_vm_that_was_taken_back_is_quarantined_for_its_own_peer(rig: Rig) -> None:
    """The honest way: it ran here, gamma took it over, and protects it back."""
    rig.remember("pg", role="protected", term=7, owner="beta", peer="gamma", armed=True, reason="it ran here")
    rig.start()
    rig.hello(hello("pg", "gamma", term=8), "gamma")
    assert [(one.vm, one.owner, one.term) for one in rig.fences] == [("pg", "gamma", 8)]


def test_a_replica_whose_primary_is_away_is_not_thrown_away_for_a_stranger(rig: Rig) -> None:
    rig.start(made_up=True)
    caller, term = committed(rig, 3)
    caller.close()
    eventually(lambda: "lost" in rig.status()[0]["reason"], "the agent does not see that gamma is away")
    before = rig.known("pg")
    strangers(rig)
    strangers(rig, uuid=str(uuid.uuid4()))
    assert rig.known("pg") == before
    assert rig.status()[0]["committed"] == 3
    _, answer = rig.hello(hello("pg", "gamma", term=term, resume=True), "gamma")
    assert isinstance(answer, Welcome) and answer.resumed and answer.committed == 3


def test_a_stranger_leaves_no_owner_behind(rig: Rig) -> None:
    """gamma's VM, whose replica an earlier agent had: alpha's HELLO fails, and gamma is not told that alpha owns it."""
    rig.remember("pg", role="standby", term=7, owner="gamma", peer="gamma", reason="followed gamma")
    rig.start(made_up=True)
    strangers(rig, resume=False)
    told = rig.ask("pg", "gamma")
    assert told is not None and (told.owner, told.term) == ("gamma", 7)
    _, answer = rig.hello(hello("pg", "gamma", term=7), "gamma")
    assert isinstance(answer, Welcome) and answer.term == 8


def test_a_vm_is_its_uuid_and_its_name(rig: Rig) -> None:
    rig.start(made_up=True)
    caller, _ = committed(rig)
    caller.close()
    other = str(uuid.uuid4())
    for changes in ({"uuid": other}, {"uuid": uuid_of("pg2")}):
        refuse = rig.refused(hello("pg", "gamma", term=1, **changes), "gamma")
        assert not refuse.fenced and not refuse.renounced
    for changes in ({"uuid": uuid_of("pg")},):
        refuse = rig.refused(hello("pg2", "gamma", **changes), "gamma")
        assert not refuse.fenced and not refuse.renounced
    assert rig.status()[0]["committed"] == 1


def test_a_question_makes_nothing_and_tells_nothing_of_files(rig: Rig) -> None:
    rig.remember("pg", role="promoted", term=7, owner="beta", peer="gamma", reason="took over")
    rig.start()
    with rig.unchanged():
        for name in ("pg2", "../vms/pg", "/etc/passwd", "pg\0", "", "a" * 5000, "..", "./pg"):
            told = rig.ask(name, "alpha")
            assert told is None or (told.owner, told.term, told.role) == ("", 0, "none")
        told = rig.ask("pg", "gamma")
        assert told is not None and (told.owner, told.term, told.role) == ("beta", 7, "promoted")


def test_the_arbiters_record_counts_more_than_a_hello(rig: Rig, etcd: Etcd) -> None:
    """gamma owns it by the arbiter: alpha gets no session, whatever is known here; once alpha does, it gets one."""
    config = Arbiter(endpoints=[etcd.url], timeout_ms=1000)
    arbiter = Register(config)
    assert arbiter.claim("pg", open_session("gamma", 5)).verdict is Verdict.WON
    settings = f'[arbiter]\nendpoints = ["{etcd.url}"]\n'
    rig.start(made_up=True, settings=settings)
    for term in TERMS:
        for cluster in (arbiter.cluster(), "", "another"):
            refuse = rig.refused(hello("pg", "alpha", term=term, arbiter=cluster), "alpha")
            assert not refuse.fenced and not refuse.renounced
    caller, welcome = rig.welcomed(hello("pg", "gamma", term=5, arbiter=arbiter.cluster()), "gamma")
    caller.say_bye(welcome.term)
    assert arbiter.claim("pg", lambda _now: Ownership("alpha", 99)).verdict is Verdict.WON
    refuse = rig.refused(hello("pg", "gamma", term=6, arbiter=arbiter.cluster()), "gamma")
    assert not refuse.fenced and not refuse.renounced
    rig.welcomed(hello("pg", "alpha", term=99, arbiter=arbiter.cluster()), "alpha")
    etcd.kill()
    refuse = rig.refused(hello("pg2", "gamma", arbiter="x"), "gamma")
    assert not refuse.fenced and not refuse.renounced
