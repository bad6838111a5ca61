# SPDX-License-Identifier: Apache-2.0
"""The replica's threads against each other: a takeover cannot be undone, an old session cannot end a new one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from remusdb.arbiter.health import Health
from remusdb.config import Agent, AgentConfig, Failover, Limits
from remusdb.core.backup_events import Bye, Hailed, LookedUp
from remusdb.core.messages import Acked, Commit, Hello, Notice, Proof, Refuse, Welcome, pack, unpack
from remusdb.core.owed import Hopeless
from remusdb.core.ownership import Claim, Ownership, Rule, Verdict
from remusdb.core.pages import decode_pages
from remusdb.core.references import encode_references
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import BadFrame, RefusedForSafety, VmError
from remusdb.history import History, read
from remusdb.names import VmName
from remusdb.reasons import Code, Reason
from remusdb.state import StateStore
from remusdb.wording import words
from remusdb_agents.backup import proving, takeover
from remusdb_agents.backup.admission import Admission
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.inbox import EpochTooLarge, WholeEpoch
from remusdb_agents.backup.lookout import Lookout
from remusdb_agents.backup.replica import Replica
from remusdb_agents.backup.seeding import TornCopy
from tests.waiting import eventually


class FakeApplier:
    """Applies what it is given as soon as anybody waits for it; never crowded."""

    crowded = False
    broken = False

    def __init__(self, moved: Callable[[WholeEpoch], None]) -> None:
        self._moved = moved
        self._epochs: list[WholeEpoch] = []

    def crowded_with(self, _epoch: WholeEpoch) -> bool:
        return False

    def put(self, epoch: WholeEpoch) -> None:
        self._epochs.append(epoch)

    def drain(self) -> None:
        while self._epochs:
            self._moved(self._epochs.pop(0))

    def apply(self, _frame: Frame) -> None:
        if self.broken:
            raise ZeroDivisionError


class FakeProver:
    """Says what it is told to say, once it may."""

    def __init__(self) -> None:
        self.proof = Proof("proven", 1, 1, 2.0)
        self.may = threading.Event()

    def prove(self, tell: Callable[[Proof], None]) -> None:
        if self.may.wait(5):
            tell(self.proof)


class FakeMachine:
    """Counts what is done to it; a takeover waits at `gate`."""

    made: ClassVar[list[FakeMachine]] = []
    gate = threading.Event()
    failure: ClassVar[Exception | None] = None  # of what is made next
    dead = ""  # what does not come up at a takeover: the "standby", or "both" it and its disks
    images: Any = None
    bases = SimpleNamespace(counts=[], seed=0, tell=lambda *_: None)

    def __init__(self, _config: Any, _hello: Any, moved: Callable[[WholeEpoch], None], broken: Any, _kept: Any) -> None:
        if FakeMachine.failure is not None:
            raise FakeMachine.failure
        self.applier = FakeApplier(moved)
        self.broken = broken
        self.closed = self.resumed = self.booted = False
        self.waiting = threading.Event()
        self.prover = FakeProver()
        FakeMachine.made.append(self)

    def wait_applied(self, timeout_s: float) -> bool:
        self.waiting.set()
        self.applier.drain()
        return FakeMachine.gate.wait(timeout_s)

    def resume(self, stays: bool) -> None:
        self.stays = stays
        assert not self.closed, "a machine that was destroyed is resumed"
        if FakeMachine.dead:
            raise VmError("the standby is dead")
        self.resumed = True

    def cold_start(self, stays: bool) -> None:
        self.stays = stays
        if FakeMachine.dead == "both":
            raise VmError("no luck")
        self.booted = True

    def announce(self, _addresses: list[str]) -> None:
        return

    def close(self, *, keep_images: bool) -> None:
        self.closed, self.kept = True, keep_images


class FakeStream:
    """Remembers what was sent."""

    peer_name = "a"

    def __init__(self) -> None:
        self.sent: list[FrameType] = []
        self.said: list[bytes] = []
        self.last_heard = time.monotonic()

    def send(self, kind: FrameType, _term: int, _epoch: int, payload: bytes = b"") -> None:
        self.sent.append(kind)
        self.said.append(payload)

    def close(self, drain_s: float = 0.0) -> None:
        return


UUID = "5a6c9f9e-4a7e-4a39-8a52-0d2b7f2d0c11"
SILENCE = Reason.of(Code.PRIMARY_SILENT, peer="a", silence_ms=500)
FIRST = 1  # the number of a replica's first connection
XML = f"<domain><name>vm</name><uuid>{UUID}</uuid></domain>"


def hello(term: int = 0, resume: bool = False) -> Hello:
    return Hello("0", "a", VmName("vm"), UUID, term, resume, 0, "q35", XML, [], [], 100, "10")


def fake(machine: type[FakeMachine]) -> Any:
    """It, in the place of a standby, with nothing in it of the test before."""
    FakeMachine.made, FakeMachine.gate = [], threading.Event()
    FakeMachine.dead, FakeMachine.failure = "", None
    return machine


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replica]:
    monkeypatch.setattr(takeover, "ASK_AGAIN_S", 0.01)
    config = AgentConfig(
        agent=Agent(name="b"), failover=Failover(automatic=False), limits=Limits(epoch_max_bytes=16 << 20)
    )
    history = History(tmp_path, None)
    admission = Admission(available=lambda: 1 << 40)
    yield Replica("vm", Context(config, StateStore(tmp_path), history, None, admission, fake(FakeMachine)))
    FakeMachine.gate.set()


def ready(replica: Replica) -> Any:
    """A session whose first epoch was committed."""
    stream: Any = FakeStream()
    assert isinstance(replica.greet(stream, hello()), Welcome)
    assert replica.take(stream, Frame(FrameType.COMMIT, 1, 1, pack(Commit(0, 0, []))))
    assert stream.sent[-1] is FrameType.ACK
    return stream


def promoting(replica: Replica) -> threading.Thread:
    """A takeover that has begun and waits for the applier."""
    thread = threading.Thread(target=replica.promote, args=(SILENCE,), daemon=True)
    thread.start()
    assert FakeMachine.made[-1].waiting.wait(5)
    return thread


def finished(replica: Replica, thread: threading.Thread, tmp_path: Path) -> None:
    """The takeover ends well: resumed, not destroyed, and on the disk."""
    FakeMachine.gate.set()
    thread.join(5)
    machine = FakeMachine.made[0]
    assert machine.resumed and not machine.closed
    kept = StateStore(tmp_path).load("vm")
    assert (kept.role, kept.term, kept.owner) == ("promoted", 2, "b")


def test_bye_cannot_undo_a_takeover(replica: Replica, tmp_path: Path) -> None:
    stream: Any = ready(replica)
    thread = promoting(replica)
    replica.post(Bye(FIRST, "bye"))  # it had passed take() just before
    assert FrameType.RENOUNCE not in stream.sent
    finished(replica, thread, tmp_path)


def test_a_new_hello_cannot_undo_a_takeover(replica: Replica, tmp_path: Path) -> None:
    ready(replica)
    thread = promoting(replica)
    other: Any = FakeStream()
    answer = replica.greet(other, hello(1))  # the VM does not run here yet: nobody is fenced for it
    assert isinstance(answer, Refuse) and answer.code == "deciding" and not answer.fenced and not answer.renounced
    replica.post(LookedUp(Hailed(FIRST, "a", hello(1))))  # one for which the arbiter was asked just before
    assert len(FakeMachine.made) == 1
    finished(replica, thread, tmp_path)
    answer = replica.greet(other, hello(1))
    assert isinstance(answer, Refuse) and answer.fenced and answer.term == 2


def test_a_torn_replica_is_renounced_unless_it_was_promoted(replica: Replica, tmp_path: Path) -> None:
    ready(replica)
    thread = promoting(replica)
    FakeMachine.made[0].broken(OSError("late"))
    finished(replica, thread, tmp_path)


def test_the_end_of_an_old_session_leaves_the_new_one(replica: Replica) -> None:
    ready(replica)
    old = FakeMachine.made[0]
    ready_again: Any = FakeStream()
    assert isinstance(replica.greet(ready_again, hello(1)), Welcome)
    assert old.closed
    old.broken(OSError("of the old one"))
    replica.post(Bye(FIRST, "late"))
    assert not FakeMachine.made[1].closed
    assert replica.status().state == "seeding"


def test_a_sign_of_life_calls_the_takeover_off(replica: Replica) -> None:
    stream = ready(replica)
    judged = stream.last_heard
    stream.last_heard += 0.1
    with pytest.raises(RefusedForSafety, match="heard again"):
        replica.promote(SILENCE, judged)
    assert replica.status().state == "ready"


def test_only_a_primary_that_is_followed_says_how_often_it_will_be_heard(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(Lookout, "follow", lambda _self, heartbeat_ms: told.append(heartbeat_ms))
    other: Any = FakeStream()
    assert isinstance(replica.greet(other, hello(7, resume=True)), Refuse)
    assert told == []
    ready(replica)
    assert told == [100] and replica.status().silence_limit_ms == 500


def test_an_epoch_above_the_bound_ends_the_session_for_good(replica: Replica) -> None:
    """Taken up again it would come again, as large, for ever."""
    stream: Any = ready(replica)
    big = Frame(FrameType.PAGES, 1, 2, bytes(9 << 20))
    assert replica.take(stream, big)
    with pytest.raises(EpochTooLarge):
        replica.take(stream, big)
    replica.lost(stream, "too large", hopeless=True)
    assert stream.sent[-1] is FrameType.RENOUNCE
    assert FakeMachine.made[0].closed and replica.status().state == "empty"


def test_pages_that_stand_on_a_disk_are_here_before_their_epoch_is_acknowledged(replica: Replica) -> None:
    """What is not there ends the connection, not the session, and the primary is told to send no more of these."""
    stream: Any = ready(replica)
    assert unpack(Acked, stream.said[-1]).applied == 0
    content, machine = np.arange(4096, dtype=np.uint8).reshape(1, -1), FakeMachine.made[0]
    payload = encode_references(0, np.array([5]), np.array([3], np.uint64), content)
    commit = pack(Commit(1, len(payload), []))
    silences: list[float] = []

    def read(_disk: int, offset: int, length: int) -> memoryview:
        silences.append(time.monotonic() - replica._here.hearing.heard())
        return memoryview(content.tobytes() if offset == 3 * 4096 and length == 4096 else bytes(length))

    machine.images = SimpleNamespace(sizes=[5 * 4096], read=read, will_read=lambda *_: None)
    stream.last_heard -= 100
    assert replica.take(stream, Frame(FrameType.PAGES, 1, 2, payload))
    assert replica.take(stream, Frame(FrameType.COMMIT, 1, 2, commit))
    assert stream.sent[-1] is FrameType.ACK and silences[0] < 1, "a disk that is slow is no silence of the primary"
    (whole,) = machine.applier._epochs[1].frames
    assert np.array_equal(decode_pages(whole.payload).data, content)
    machine.applier.drain()
    other = encode_references(0, np.array([5]), np.array([4], np.uint64), content)
    with pytest.raises(BadFrame, match="block 4 of disk 0 is not the page") as refused:
        replica.take(stream, Frame(FrameType.PAGES, 1, 3, other))
    assert not isinstance(refused.value, Hopeless)
    replica.lost(stream, "refused")
    again: Any = FakeStream()
    welcome = replica.greet(again, hello(1, resume=True))
    assert isinstance(welcome, Welcome) and welcome.resumed and welcome.committed == 2
    assert replica.take(again, Frame(FrameType.COMMIT, 1, 3, pack(Commit(0, 0, []))))
    assert again.sent[-1] is FrameType.ACK and again.said[-1] == b""


def test_a_refused_resume_is_the_word_that_nothing_is_here(replica: Replica) -> None:
    stream: Any = FakeStream()
    answer = replica.greet(stream, hello(0, resume=True))
    assert isinstance(answer, Refuse) and answer.renounced and not answer.fenced
    stranger = Hello("0", "mars", VmName("vm"), UUID, 0, True, 0, "q35", XML, [], [], 100, "10")
    refused = replica.greet(stream, stranger)
    assert isinstance(refused, Refuse) and not refused.renounced


class Etcd:
    """An arbiter that answers what it is told to."""

    def __init__(self, record: Ownership, *verdicts: Verdict) -> None:
        self.record, self.verdicts = record, list(verdicts)

    def read(self, _vm: str) -> Ownership:
        return self.record

    def cluster(self) -> str:
        return ""

    def health(self) -> Health:
        return Health("etcd has used up its space", "make room")

    def claim(self, _vm: str, rule: Rule) -> Claim:
        verdict = self.verdicts.pop(0) if self.verdicts else Verdict.WON
        new = rule(self.record)
        if verdict in (Verdict.WON, Verdict.UNKNOWN) and new is not None:
            self.record = new
        return Claim(verdict if new is not None else Verdict.LOST, self.record)


def with_arbiter(replica: Replica, arbiter: Any) -> None:
    """The replica asks this arbiter from now on."""
    object.__setattr__(replica.context, "arbiter", arbiter)


def test_a_primary_that_went_on_alone_is_not_taken_over(replica: Replica, tmp_path: Path) -> None:
    ready(replica)
    with_arbiter(replica, Etcd(Ownership("a", 2)))
    with pytest.raises(RefusedForSafety, match=r"the arbiter says that a \(term 2\) owns"):
        replica.promote(SILENCE)
    assert FakeMachine.made[0].closed and replica.status().state == "empty"
    assert StateStore(tmp_path).load("vm").role == "none"


def test_a_claim_that_the_arbiter_never_saw_changes_nothing(replica: Replica) -> None:
    stream: Any = ready(replica)
    with_arbiter(replica, Etcd(Ownership("a", 1), Verdict.UNREACHED))
    with pytest.raises(RefusedForSafety, match="does not answer"):
        replica.promote(SILENCE)
    assert replica.status().state == "ready"
    assert replica.take(stream, Frame(FrameType.COMMIT, 1, 2, pack(Commit(0, 0, []))))
    assert stream.sent[-1] is FrameType.ACK


def test_a_claim_whose_answer_was_lost_is_asked_again(replica: Replica, tmp_path: Path) -> None:
    ready(replica)
    FakeMachine.gate.set()
    with_arbiter(replica, Etcd(Ownership("a", 1), Verdict.UNKNOWN, Verdict.UNREACHED, Verdict.WON))
    assert replica.promote(SILENCE).term == 2
    assert StateStore(tmp_path).load("vm").role == "promoted"


def test_a_standby_that_cannot_be_resumed_is_booted_from_its_disks(replica: Replica, tmp_path: Path) -> None:
    ready(replica)
    FakeMachine.gate.set()
    FakeMachine.dead = "standby"
    assert replica.promote(SILENCE).how == words(Reason.of(Code.RESUMED_COLD, error="the standby is dead"))
    assert FakeMachine.made[0].booted and StateStore(tmp_path).load("vm").role == "promoted"


def test_what_cannot_run_here_goes_back_to_its_owner(replica: Replica, tmp_path: Path) -> None:
    """The way out of a takeover that failed: the old primary, if it lives, hears that it may go on."""
    ready(replica)
    FakeMachine.gate.set()
    FakeMachine.dead = "both"
    arbiter = Etcd(Ownership("a", 1))
    with_arbiter(replica, arbiter)
    with pytest.raises(VmError, match="no luck"):
        replica.promote(SILENCE)
    kept = StateStore(tmp_path).load("vm")
    assert (kept.role, kept.term, kept.owner) == ("none", 2, "a")
    stream: Any = FakeStream()
    answer = replica.greet(stream, hello(1, resume=True))
    assert isinstance(answer, Refuse) and answer.renounced and not answer.fenced
    eventually(lambda: arbiter.record == Ownership("", 2, "a"))


def test_without_the_other_hosts_arbiter_there_is_no_session(replica: Replica) -> None:
    stream: Any = FakeStream()
    other = Hello("0", "a", VmName("vm"), UUID, 0, False, 0, "q35", XML, [], [], 100, "10", "cluster-7")
    answer = replica.greet(stream, other)
    assert isinstance(answer, Refuse) and "same arbiter" in answer.reason and not answer.renounced


def test_a_lost_copy_is_taken_up_where_it_was(replica: Replica) -> None:
    stream: Any = FakeStream()
    assert isinstance(replica.greet(stream, hello()), Welcome)
    for _ in range(3):
        assert replica.take(stream, Frame(FrameType.PAGES, 1, 0, b""))
    assert stream.sent == [FrameType.TAKEN] * 3
    replica.lost(stream, "reset")
    assert replica.status().state == "seeding" and not FakeMachine.made[0].closed
    other: Any = FakeStream()
    welcome = replica.greet(other, hello(1, resume=True))
    assert isinstance(welcome, Welcome) and welcome.resumed and (welcome.committed, welcome.taken) == (0, 3)
    assert not replica.take(stream, Frame(FrameType.PAGES, 1, 0, b"")), "of the old connection"
    assert replica.take(other, Frame(FrameType.PAGES, 1, 0, b""))
    assert isinstance(replica.greet(other, hello(1)), Welcome), "a new session"
    assert replica.take(other, Frame(FrameType.PAGES, 2, 0, b""))
    replica.lost(other, "reset")
    welcome = replica.greet(other, hello(2, resume=True))
    assert isinstance(welcome, Welcome) and welcome.taken == 1


def test_a_whole_replica_is_moved_by_epochs_alone(replica: Replica) -> None:
    """A frame of the initial sync that comes late would change memory between two epochs, or in a takeover."""
    stream = ready(replica)
    with pytest.raises(BadFrame, match="after its end"):
        replica.take(stream, Frame(FrameType.PAGES, 1, 0, b""))


def test_a_copy_that_cannot_be_applied_is_not_taken_up(replica: Replica) -> None:
    stream: Any = FakeStream()
    assert isinstance(replica.greet(stream, hello()), Welcome)
    FakeMachine.made[0].applier.broken = True
    with pytest.raises(TornCopy) as caught:
        replica.take(stream, Frame(FrameType.PAGES, 1, 0, b""))
    replica.lost(stream, str(caught.value), hopeless=True)
    assert FakeMachine.made[0].closed and stream.sent[-1] is FrameType.RENOUNCE


def test_a_copy_whose_primary_is_gone_is_given_up_after_a_while(replica: Replica) -> None:
    stream: Any = FakeStream()
    assert isinstance(replica.greet(stream, hello()), Welcome)
    replica.end_silent_copy(time.monotonic())
    assert FakeMachine.made[0].closed and replica.status().state == "empty"


def test_a_whole_replica_waits_for_its_primary(replica: Replica) -> None:
    ready(replica)
    replica.end_silent_copy(time.monotonic())
    assert replica.status().state == "ready"


def proven(replica: Replica, verdict: Any, **told: Any) -> tuple[FakeStream, FakeProver]:
    """A session whose standby is tried just now, and what comes of it."""
    stream = ready(replica)
    prover = FakeMachine.made[-1].prover
    prover.proof = Proof(verdict, 5, 3, **told)
    return stream, prover


def proofs(stream: FakeStream, count: int = 1) -> None:
    """Wait until the primary was told so often."""
    eventually(lambda: stream.sent.count(FrameType.PROOF) >= count)


def test_the_standby_is_proven_once_its_first_epoch_is_here(replica: Replica) -> None:
    stream, prover = proven(replica, "proven", took_ms=80.0)
    status = replica.status()
    assert (status.proven_at_ns, status.unproven) == (None, "") and FrameType.PROOF not in stream.sent
    prover.may.set()
    proofs(stream)
    status = replica.status()
    assert (status.proven_at_ns, status.proven_epoch, status.proven_ms) == (5, 3, 80.0)


def test_a_primary_that_comes_back_hears_it_again(replica: Replica) -> None:
    stream, prover = proven(replica, "refused", reason="no such device")
    prover.may.set()
    proofs(stream)
    again: Any = FakeStream()
    welcome = replica.greet(again, hello(1, resume=True))
    assert isinstance(welcome, Welcome) and FrameType.PROOF not in again.sent
    replica.welcomed(again, welcome, [])
    assert again.sent == [FrameType.PROOF]
    assert "no such device" in replica.status().unproven


def test_a_proof_that_outlived_its_session_says_nothing(replica: Replica) -> None:
    """Neither of the next session's standby, nor of the VM that this host took over."""
    old, prover = proven(replica, "refused", reason="of the old one")
    new: Any = FakeStream()
    assert isinstance(replica.greet(new, hello(1)), Welcome)
    prover.may.set()
    time.sleep(0.1)
    assert FrameType.PROOF not in old.sent + new.sent and replica.status().unproven == ""


def test_a_copy_that_is_taken_up_hears_nothing_of_the_last_sessions_standby(replica: Replica) -> None:
    old, prover = proven(replica, "refused", reason="of the old one")
    prover.may.set()
    proofs(old)
    new: Any = FakeStream()
    assert isinstance(replica.greet(new, hello(1)), Welcome)
    replica.lost(new, "reset")
    welcome = replica.greet(new, hello(2, resume=True))
    assert isinstance(welcome, Welcome) and welcome.resumed
    replica.welcomed(new, welcome, [])
    assert FrameType.PROOF not in new.sent and replica.status().unproven == ""


def test_what_could_not_be_tried_is_tried_again(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "RETRY_S", (0.0,))
    stream, prover = proven(replica, "unable", reason="no memory")
    prover.may.set()
    proofs(stream)
    assert "no memory" in replica.status().unproven
    prover.proof = Proof("proven", 9, 4, 70.0)
    proofs(stream, 2)
    eventually(lambda: replica.status().proven_at_ns == 9)
    told = stream.sent.count(FrameType.PROOF)
    monkeypatch.setattr(proving, "AGAIN_S", 0.0)
    prover.proof = Proof("unable", 11, reason="no memory")  # what is proven stays so
    time.sleep(0.1)
    assert replica.status().unproven == "" and stream.sent.count(FrameType.PROOF) == told


@pytest.mark.parametrize("dead", ["", "standby"])
def test_a_vm_that_stood_still_does_so_after_the_takeover(replica: Replica, tmp_path: Path, dead: str) -> None:
    """Resumed or booted; the last epoch counts."""
    stream: Any = ready(replica)
    assert replica.take(stream, Frame(FrameType.COMMIT, 1, 2, pack(Commit(0, 0, [], stays=True))))
    FakeMachine.gate.set()
    FakeMachine.dead = dead
    assert "is paused as it was" in replica.promote(SILENCE).how
    assert FakeMachine.made[0].stays
    why = StateStore(tmp_path).load("vm").why
    assert why is not None and why.params["why"] == SILENCE and why.params["still"]


def test_a_vm_that_was_resumed_in_time_runs_after_the_takeover(replica: Replica) -> None:
    stream: Any = ready(replica)
    for epoch, stays in ((2, True), (3, False)):
        assert replica.take(stream, Frame(FrameType.COMMIT, 1, epoch, pack(Commit(0, 0, [], stays=stays))))
    FakeMachine.gate.set()
    assert replica.promote(SILENCE).how == words(Reason.of(Code.RESUMED_WARM))
    assert not FakeMachine.made[0].stays


def test_a_takeover_that_waits_for_the_arbiter_says_so(replica: Replica, tmp_path: Path) -> None:
    """Once in the history, and in status for as long as it asks."""
    ready(replica)
    asked = threading.Event()

    class Full(Etcd):
        def claim(self, vm: str, rule: Rule) -> Claim:
            if replica.status().troubles:
                asked.set()
            return super().claim(vm, rule)

    with_arbiter(replica, Full(Ownership("a", 1), Verdict.UNKNOWN, *[Verdict.UNREACHED, Verdict.UNKNOWN] * 19))
    FakeMachine.gate.set()
    thread = threading.Thread(target=replica.promote, args=(SILENCE,), daemon=True)
    thread.start()
    assert asked.wait(5)
    status = replica.status()
    assert status.troubles == ["arbiter"] and "used up its space" in status.reason
    thread.join(20)
    assert replica.context.history.flush(5)
    told = [one for one in read(tmp_path, "vm") if one.event == "trouble"]
    assert [one.details for one in told] == [{"what": "arbiter"}]


def test_a_hello_of_the_last_term_there_is_leaves_the_vm_protectable(replica: Replica, tmp_path: Path) -> None:
    """It was written as it came; the next term could not be packed, and every later HELLO ended in a traceback."""
    stream: Any = FakeStream()
    for term in (2**62, 2**62 - 1, 2**60):
        for _ in range(3):
            answer = replica.greet(stream, hello(term))
            assert isinstance(answer, Refuse) and not answer.fenced and answer.code == "behind"
            pack(answer)
    assert not FakeMachine.made
    known = StateStore(tmp_path).load("vm")
    assert known.term == 9 << 20 and known.role == "none"
    welcome = replica.greet(stream, hello(7))
    assert isinstance(welcome, Welcome) and welcome.term == known.term + 1
    pack(welcome)


def test_a_primary_that_is_far_ahead_is_welcomed_after_a_few_tries(replica: Replica) -> None:
    """The agent lost its state, and another one had taken the primary far."""
    stream: Any = FakeStream()
    term = 3 << 20
    answers = [replica.greet(stream, hello(term)) for _ in range(3)]
    assert [type(answer) for answer in answers] == [Refuse, Refuse, Welcome]
    assert isinstance(answers[-1], Welcome) and answers[-1].term == term + 1


class Deaf(FakeStream):
    """A primary that does not read: what it is told stays on the way until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.telling, self.may = threading.Event(), threading.Event()

    def send(self, kind: FrameType, term: int, epoch: int, payload: bytes = b"") -> None:
        if kind in (FrameType.RENOUNCE, FrameType.DECLINE):
            self.telling.set()
            assert self.may.wait(20)
        super().send(kind, term, epoch, payload)


def test_a_primary_that_does_not_read_holds_up_nobody_who_asks(replica: Replica) -> None:
    stream: Any = Deaf()
    assert isinstance(replica.greet(stream, hello()), Welcome)
    bye = Frame(FrameType.BYE, 1, 0, pack(Notice("bye")))
    thread = threading.Thread(target=replica.take, args=(stream, bye), daemon=True)
    thread.start()
    assert stream.telling.wait(20)
    asked = threading.Thread(target=lambda: (replica.status(), replica.standing()), daemon=True)
    asked.start()
    asked.join(10)
    waits, _ = asked.is_alive(), stream.may.set()
    thread.join(20)
    assert not waits and stream.sent[-1] is FrameType.RENOUNCE and FakeMachine.made[0].closed


def test_a_primary_that_asks_for_a_switchover_again_and_again_costs_one_thread(replica: Replica) -> None:
    stream: Any = Deaf()
    assert isinstance(replica.greet(stream, hello()), Welcome)  # nothing is here that could take over
    takeover_asked = Frame(FrameType.TAKEOVER, 1, 0, pack(Notice("again")))
    before = threading.active_count()
    try:
        for _ in range(50):
            assert replica.take(stream, takeover_asked)
        assert stream.telling.wait(20)
        assert threading.active_count() - before <= 2
    finally:
        stream.may.set()
    eventually(lambda: not any(thread.name == "switchover-vm" for thread in threading.enumerate()))
    told = stream.sent.count(FrameType.DECLINE)
    assert replica.take(stream, takeover_asked)  # and once that is answered, it may ask again
    eventually(lambda: stream.sent.count(FrameType.DECLINE) > told)


def test_a_replica_that_a_hello_renounces_is_taken_away_while_others_have_their_turn(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The applier, which is waited for, needs it."""
    free: list[bool] = []

    def close(machine: FakeMachine, *, keep_images: bool) -> None:
        thread = threading.Thread(target=machine.applier.drain, daemon=True)
        thread.start()
        thread.join(20)
        free.append(not thread.is_alive())

    ready(replica)
    monkeypatch.setattr(FakeMachine, "close", close)
    answer = replica.greet(FakeStream(), hello(2, resume=True))  # type: ignore[arg-type]
    assert isinstance(answer, Refuse) and answer.renounced and free == [True]
