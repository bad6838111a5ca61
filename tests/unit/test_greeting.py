# SPDX-License-Identifier: Apache-2.0
"""What a HELLO can do to a VM that is another host's, or another VM: nothing; it is told what an operator can do."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from remusdb.core.messages import Hello, Notice, RamBlock, Refuse, Welcome, pack
from remusdb.core.ownership import Ownership
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import CannotProtect
from remusdb.names import VmName
from remusdb.state import StateStore, VmState
from remusdb_agents.backup import errands as module
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.replica import Replica
from tests.unit.test_replica import UUID, Etcd, FakeMachine, FakeStream, ready, replica, with_arbiter

__all__ = ["replica"]  # the fixture
OTHER = UUID.replace("5a", "66")


def hello(primary: str, term: int, *, resume: bool = False, uuid: str = UUID, xml: str = "") -> Hello:
    xml = xml or f"<domain><name>vm</name><uuid>{uuid}</uuid></domain>"
    return Hello("0", primary, VmName("vm"), uuid, term, resume, 0, "q35", xml, [], [], 100, "10")


def stream(peer: str) -> Any:
    made = FakeStream()
    made.peer_name = peer
    return made


def told(replica: Replica, said: Hello, peer: str = "") -> Refuse | Welcome:
    return replica.greet(stream(peer or said.primary), said)


def refused(replica: Replica, said: Hello, peer: str = "") -> Refuse:
    """A refusal that is no word on who owns the VM, with something to do."""
    answer = told(replica, said, peer)
    assert isinstance(answer, Refuse) and not answer.fenced and not answer.renounced and answer.hint, answer
    return answer


@pytest.fixture
def yielded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, int]]:
    """What the host daemon was asked to quarantine."""
    asked: list[tuple[str, int]] = []

    def quarantine(_context: Context, vm: str, owner: str, term: int) -> None:
        asked.append((owner, term))
        StateStore(tmp_path).update(vm, role="fenced", owner=owner, term=term, quarantined=True)

    monkeypatch.setattr(Context, "yield_vm", quarantine)
    return asked


def put(tmp_path: Path, **state: Any) -> None:
    StateStore(tmp_path).update("vm", **state)


@pytest.mark.parametrize("term", [1, 2, 99])
@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("connected", [True, False])
def test_a_strangers_hello_costs_the_replica_nothing(
    replica: Replica, tmp_path: Path, connected: bool, resume: bool, term: int
) -> None:
    session: Any = ready(replica)
    if not connected:
        replica.lost(session, "reset")
    before = StateStore(tmp_path).load("vm")
    refused(replica, hello("alpha", term, resume=resume))
    assert StateStore(tmp_path).load("vm") == before
    assert replica.status().state == "ready" and not FakeMachine.made[0].closed
    answer = told(replica, hello("a", 1, resume=True))  # and its owner goes on
    assert isinstance(answer, Welcome) and answer.resumed


@pytest.mark.parametrize("primary", ["alpha", "a"])
def test_a_hello_does_not_end_a_vm_that_runs_here(
    replica: Replica, tmp_path: Path, yielded: list[tuple[str, int]], primary: str
) -> None:
    """Whatever term it claims: the VM is not protected from here, so nobody can have taken it over."""
    put(tmp_path, role="promoted", term=7, owner="b", peer="a", uuid=UUID)
    answer = told(replica, hello(primary, 99))
    assert isinstance(answer, Refuse) and answer.fenced and answer.term == 7 and yielded == []


def test_the_backup_that_took_it_over_has_the_old_one_quarantined(
    replica: Replica, tmp_path: Path, yielded: list[tuple[str, int]]
) -> None:
    put(tmp_path, role="protected", term=7, owner="b", peer="c", armed=True, uuid=UUID)
    for primary in ("a", "alpha"):  # a -> b -> c -> a with b back too late: an operator's word is needed, or c's
        answer = told(replica, hello(primary, 9))
        assert isinstance(answer, Refuse) and answer.fenced and yielded == []
    assert isinstance(told(replica, hello("c", 8)), Welcome) and yielded == [("c", 8)]


def test_the_arbiters_record_is_read_first(replica: Replica, tmp_path: Path, yielded: list[tuple[str, int]]) -> None:
    put(tmp_path, role="protected", term=7, owner="b", peer="c", armed=True, uuid=UUID)
    with_arbiter(replica, Etcd(Ownership("b", 7)))
    answer = told(replica, hello("c", 8))  # it has not taken the VM over, and says that it did
    assert isinstance(answer, Refuse) and answer.fenced and yielded == []
    with_arbiter(replica, Etcd(Ownership("d", 9)))
    session = stream("d")
    assert isinstance(replica.greet(session, hello("d", 9)), Welcome) and yielded == [("d", 9)]
    replica.lost(session, "reset")
    answer = refused(replica, hello("c", 99))
    assert "the arbiter says that d has owned VM vm since term 9" in answer.reason and "etcd" in answer.hint


def test_who_knows_another_owner_names_the_operators_word(replica: Replica, tmp_path: Path) -> None:
    put(tmp_path, role="none", term=7, owner="a", peer="a", uuid=UUID)
    answer = refused(replica, hello("c", 9))
    assert "host a owns VM vm (term 7), not c" in answer.reason and answer.hint.endswith("on b: remusdb forget vm")
    put(tmp_path, owner="b")
    assert "this host itself owns VM vm" in refused(replica, hello("c", 9)).reason


def test_a_vm_that_was_unprotected_may_come_from_anywhere(replica: Replica, tmp_path: Path) -> None:
    session: Any = ready(replica)
    assert not replica.take(session, Frame(FrameType.BYE, 1, 0, pack(Notice("unprotect was asked for", forget=True))))
    kept = StateStore(tmp_path).load("vm")
    assert (kept.role, kept.term, kept.owner, kept.peer, kept.uuid) == ("none", 1, "", "", "")
    answer = told(replica, hello("c", 0, uuid=OTHER))
    assert isinstance(answer, Welcome) and answer.term == 2


def test_a_session_that_ended_otherwise_leaves_the_vm_its_owners(replica: Replica) -> None:
    session: Any = ready(replica)
    assert not replica.take(session, Frame(FrameType.BYE, 1, 0, pack(Notice("the VM was shut down"))))
    refused(replica, hello("c", 0))
    assert isinstance(told(replica, hello("a", 1)), Welcome)


@pytest.mark.parametrize("resume", [True, False])
def test_the_same_name_with_another_uuid_is_another_vm(replica: Replica, resume: bool) -> None:
    replica.lost(ready(replica), "reset")
    answer = refused(replica, hello("a", 1, uuid=OTHER, resume=resume))
    assert f"with UUID {UUID}, not {OTHER}" in answer.reason and "remusdb forget vm" in answer.hint
    assert replica.status().state == "ready"


def test_the_same_uuid_under_another_name_is_another_vm(replica: Replica, tmp_path: Path) -> None:
    StateStore(tmp_path).update("old", role="none", term=3, owner="a", uuid=UUID)
    answer = refused(replica, hello("a", 1))
    assert f"UUID {UUID} as that of VM old" in answer.reason and "remusdb forget old" in answer.hint


def test_a_name_that_another_host_chose_is_nothing_that_a_shell_obeys(replica: Replica, tmp_path: Path) -> None:
    """An operator copies the hint; the name in it came from a third host."""
    StateStore(tmp_path).update("old; $(id)", role="none", term=3, owner="a", uuid=UUID)
    assert refused(replica, hello("a", 1)).hint.endswith("remusdb forget 'old; $(id)'")


def test_a_promotion_that_was_never_followed_up_fences_nobody(replica: Replica, tmp_path: Path) -> None:
    put(tmp_path, role="promoting", term=7, owner="b", peer="a", uuid=UUID)
    for resume in (True, False):
        answer = told(replica, hello("a", 9, resume=resume))
        assert isinstance(answer, Refuse) and answer.code == "deciding" and not answer.fenced


def test_a_fenced_vm_that_is_not_quarantined_stays_the_owners(
    replica: Replica, tmp_path: Path, yielded: list[tuple[str, int]]
) -> None:
    put(tmp_path, role="fenced", term=7, owner="c", peer="c", uuid=UUID)
    refused(replica, hello("a", 9))
    assert yielded == []
    assert isinstance(told(replica, hello("c", 7)), Welcome) and yielded == [("c", 7)]


def test_a_host_daemon_that_cannot_put_it_away_is_told(
    replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_args: object) -> None:
        raise CannotProtect("no host daemon", hint="start it")

    monkeypatch.setattr(Context, "yield_vm", away)
    put(tmp_path, role="fenced", term=7, owner="c", peer="c", uuid=UUID)
    answer = refused(replica, hello("c", 7))
    assert "not quarantined: no host daemon" in answer.reason and answer.hint == "start it"


def test_who_is_asked_tells_which_vm_it_means(replica: Replica, tmp_path: Path) -> None:
    put(tmp_path, role="promoted", term=7, owner="b", peer="a", uuid=UUID)
    standing = replica.standing()
    assert (standing.owner, standing.role, standing.uuid) == ("b", "promoted", UUID)
    assert msgspec.structs.asdict(VmState(vm="vm"))["uuid"] == ""


@pytest.mark.parametrize(
    "xml",
    [
        "<domain>",
        "<!DOCTYPE d [<!ENTITY a 'b'>]><domain><name>&a;</name></domain>",
        f"<domain><name>other</name><uuid>{UUID}</uuid></domain>",
        f"<domain><name>vm</name><uuid>{OTHER}</uuid></domain>",
        "<domain><name>vm</name></domain>",
    ],
)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("term", [1, 1 << 60])
def test_a_vm_that_cannot_be_agreed_on_leaves_nothing(
    replica: Replica, tmp_path: Path, known: bool, xml: str, term: int
) -> None:
    """No state, no term, no history; and the replica that was there stays, for the same owner's next try."""
    if known:
        replica.lost(ready(replica), "reset")
    assert replica.context.history.flush(20)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    answer = told(replica, hello("a", term, xml=xml))
    assert isinstance(answer, Refuse) and not answer.fenced and not answer.renounced
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    assert len(FakeMachine.made) == known and replica.status().state == ("ready" if known else "empty")


def test_a_vm_that_has_no_room_here_any_more_costs_nothing(replica: Replica) -> None:
    """It grew: its next session is refused while the replica of the last one is still worth something."""
    replica.lost(ready(replica), "reset")
    grown = msgspec.structs.replace(hello("a", 1), blocks=[RamBlock("pc.ram", 1 << 50)])
    answer = refused(replica, grown)
    assert "MiB of memory" in answer.reason and replica.status().state == "ready"
    assert len(FakeMachine.made) == 1 and not FakeMachine.made[0].closed


@pytest.mark.parametrize(
    "failure", [OverflowError("too large"), ValueError("NUL"), RecursionError(), CannotProtect("no")]
)
def test_whatever_fails_while_the_standby_is_made_is_answered(
    replica: Replica, tmp_path: Path, failure: Exception
) -> None:
    FakeMachine.failure = failure
    answer = told(replica, hello("a", 1))
    assert isinstance(answer, Refuse) and not answer.fenced and not answer.renounced
    ours = isinstance(failure, CannotProtect)
    assert answer.reason == ("no" if ours else "internal error of the agent")
    kept = StateStore(tmp_path).load("vm")
    assert (kept.role, kept.term, kept.owner, kept.uuid) == ("none", 2, "", "")  # it made nobody the owner
    assert replica.idle and replica.status().state == "empty"
    FakeMachine.failure = None
    assert isinstance(told(replica, hello("c", 0, uuid=OTHER)), Welcome)


def test_a_failure_before_a_session_begins_costs_the_replica_nothing(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica.lost(ready(replica), "reset")

    def fails(*_args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "look_up", fails)
    answer = told(replica, hello("a", 9))
    assert isinstance(answer, Refuse) and "internal error" in answer.reason and "log" in answer.hint
    assert replica.status().state == "ready" and not FakeMachine.made[0].closed


def test_a_stranger_for_whom_the_arbiter_is_asked_does_not_hold_up_the_owner(replica: Replica) -> None:
    """It takes its session up again within a fraction of the silence that it is allowed."""
    asked, may = threading.Event(), threading.Event()

    class Slow(Etcd):
        def read(self, vm: str) -> Ownership:
            asked.set()
            assert may.wait(20)
            return super().read(vm)

    replica.lost(ready(replica), "reset")
    with_arbiter(replica, Slow(Ownership("a", 1)))
    strange = threading.Thread(target=told, args=(replica, hello("alpha", 9)), daemon=True)
    strange.start()
    assert asked.wait(20)
    answers: list[Refuse | Welcome] = []
    owner = threading.Thread(target=lambda: answers.append(told(replica, hello("a", 1, resume=True))), daemon=True)
    owner.start()
    owner.join(10)
    waited = owner.is_alive()
    may.set()
    strange.join(20)
    assert not waited and isinstance(answers[0], Welcome) and answers[0].resumed


def test_a_superseded_vm_stays_so_when_a_session_comes_to_nothing(replica: Replica, tmp_path: Path) -> None:
    put(
        tmp_path,
        role="fenced",
        term=7,
        owner="a",
        peer="a",
        uuid=UUID,
        quarantined=True,
        quarantined_disks={"vda": "/kept/vda.raw"},
    )

    FakeMachine.failure = CannotProtect("no room")
    assert "no room" in told(replica, hello("a", 7)).reason  # type: ignore[union-attr]
    kept = StateStore(tmp_path).load("vm")
    assert (kept.role, kept.owner, kept.quarantined, kept.quarantined_disks) == (
        "fenced",
        "a",
        True,
        {"vda": "/kept/vda.raw"},
    )
