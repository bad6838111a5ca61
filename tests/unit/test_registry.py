# SPDX-License-Identifier: Apache-2.0
"""What the agent holds of VMs that nothing happens to: nothing. One bad state file is one VM's trouble."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from remusdb.config import Agent, AgentConfig, Primary
from remusdb.core.messages import Commit, Hello, Question, Refuse, Standing, Welcome, pack, unpack
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import NotProtected, PeerUnreachable, UnreadableState
from remusdb.history import History
from remusdb.names import VmName
from remusdb.state import StateStore
from remusdb_agents.backup import errands as module
from remusdb_agents.backup.admission import Admission
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.registry import Registry
from remusdb_agents.backup.sessions import Sessions
from remusdb_agents.backup.ticker import Ticker
from tests.unit.test_replica import UUID, FakeMachine, FakeStream, fake, hello
from tests.waiting import eventually


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr(module, "remove_leftover", lambda *_: None)
    agent = Agent(name="b", state_dir=tmp_path, image_dir=tmp_path / "images")
    config = AgentConfig(agent=agent, primaries={"a": Primary()})
    admission = Admission(available=lambda: 1 << 40)
    machine = fake(FakeMachine)
    FakeMachine.gate.set()
    return Context(config, StateStore(tmp_path), History(tmp_path, None), None, admission, machine)


class Stream(FakeStream):
    """A connection on which these frames come, and then nothing more."""

    def __init__(self, *frames: Frame) -> None:
        super().__init__()
        self._frames = list(frames)
        self.answers: list[tuple[FrameType, bytes]] = []
        self.beats = 0

    def receive(self, _timeout_s: float) -> Frame:
        if not self._frames:
            raise PeerUnreachable("closed")
        return self._frames.pop(0)

    def send(self, kind: FrameType, _term: int, _epoch: int, payload: bytes = b"") -> None:
        self.answers.append((kind, payload))

    def beat(self, _term: int) -> None:
        self.beats += 1


def serve(context: Context, registry: Registry, kind: FrameType, payload: bytes) -> tuple[FrameType, bytes]:
    stream: Any = Stream(Frame(kind, 0, 0, memoryview(payload)))
    Sessions(context, registry).serve(stream)
    return stream.answers[0]  # type: ignore[no-any-return]


def test_questions_about_unknown_vms_cost_nothing(context: Context, tmp_path: Path) -> None:
    registry, threads = Registry(context), threading.active_count()
    for number in range(300):
        kind, payload = serve(context, registry, FrameType.ASK, pack(Question(VmName(f"vm{number}"), "a", 0)))
        assert kind is FrameType.STANDING and unpack(Standing, payload).role == "none"
    assert registry._replicas == {}
    eventually(lambda: threading.active_count() <= threads)  # the last one's may still be ending
    assert not (tmp_path / "vms").exists()


def test_a_refused_hello_leaves_no_replica(context: Context, tmp_path: Path) -> None:
    registry, threads = Registry(context), threading.active_count()
    for number in range(100):
        said = Hello("0", "a", VmName(f"vm{number}"), UUID, 0, False, 0, "q35", "<domain/>", [], [], 100, "10")
        assert serve(context, registry, FrameType.HELLO, pack(said))[0] is FrameType.REFUSE
    assert registry._replicas == {}
    eventually(lambda: threading.active_count() <= threads)  # the last one's may still be ending
    assert not (tmp_path / "vms").exists()


def test_many_vms_at_rest_take_no_thread(context: Context) -> None:
    for number in range(100):
        context.store.update(f"vm{number}", role="none", term=3, owner="a", peer="a")
        context.store.update(f"own{number}", role="promoted", term=3, owner="b", peer="a")
    threads = threading.active_count()
    registry = Registry(context)
    registry.recover()
    assert threading.active_count() <= threads and registry.live() == []
    told = registry.status(None)
    assert len(told) == 200 and {one.state for one in told} == {"empty", "promoted"}


def test_a_replica_that_ended_is_forgotten_and_a_waiting_one_is_not(context: Context) -> None:
    registry = Registry(context)
    stream: Any = Stream()
    with registry.using("vm") as replica:
        assert isinstance(replica.greet(stream, hello()), Welcome)
        replica.lost(stream, "reset")
    assert registry.live() == [replica]
    with registry.using("vm") as same:
        assert same is replica
    FakeMachine.made[-1].broken(OSError("enough"))
    assert registry.live() == [] and registry.status("vm")[0].reason == "enough"


def test_what_an_earlier_agent_left_is_finished_and_then_forgotten(context: Context) -> None:
    context.store.update("vm", role="standby", term=3, owner="a", peer="a")
    registry = Registry(context)
    registry.recover()
    eventually(lambda: registry.live() == [])
    assert context.store.load("vm").role == "none"


def test_a_takeover_that_died_is_told_as_undecided(context: Context) -> None:
    """Before it is known that the VM runs here, nobody may be quarantined for it."""
    context.store.update("vm", role="promoting", term=3, owner="b", peer="a")
    registry = Registry(context)
    assert registry.standing("vm").owner == ""
    with registry.using("vm") as replica:
        assert registry.standing("vm").owner == "" == replica.standing().owner


def in_its_place(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def spoil(file: Path) -> None:
        file.unlink()
        make(file)

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(bytes(400)),
        lambda file: file.write_bytes(file.read_bytes()[:60]),
        lambda file: file.write_text("[" * 100_000),
        lambda file: file.write_text('{"format": 99, "vm": "bad"}'),
        lambda file: file.write_text('{"format": 2, "vm": "bad", "term": -1}'),
        lambda file: file.write_text('{"format": 2, "vm": "bad", "term": 9223372036854775807}'),
        lambda file: file.write_text('{"format": 2, "vm": "bad", "term": true}'),
        lambda file: file.write_text('{"format": 2, "vm": "good"}'),
        lambda file: file.write_text('{"format": 2, "vm": "bad", "quarantined_disks": ["vda"]}'),
        lambda file: file.write_bytes(b'{"format": 2, "vm": "bad", "reason": "\xff"}'),
        in_its_place(Path.mkdir),
        in_its_place(os.mkfifo),  # nobody writes: whoever opens it to read waits for ever
        in_its_place(lambda file: file.symlink_to("/dev/zero")),
        lambda file: os.truncate(file, 1 << 40),
    ],
)
def test_a_state_file_that_cannot_be_read_costs_its_vm_alone(
    context: Context, tmp_path: Path, spoil: Callable[[Path], Any]
) -> None:
    for vm in ("bad", "good"):
        context.store.update(vm, role="none", term=3, owner="a", peer="a")
    file = tmp_path / "vms" / "bad.json"
    spoil(file)
    registry = Registry(context)
    registry.recover()
    bad, good = registry.status(None)
    assert (bad.vm, bad.state) == ("bad", "failed") and str(file) in bad.reason
    assert "move the file away" in bad.hint
    assert (good.vm, good.state) == ("good", "empty")
    said = Hello("0", "a", VmName("bad"), UUID, 9, False, 0, "q35", "<domain/>", [], [], 100, "10")
    for kind, message in ((FrameType.HELLO, said), (FrameType.ASK, Question(VmName("bad"), "a", 9))):
        answer, payload = serve(context, registry, kind, pack(message))
        refuse = unpack(Refuse, payload)
        assert answer is FrameType.REFUSE and not refuse.fenced and not refuse.renounced and refuse.hint
    with pytest.raises(UnreadableState), registry.known("bad"):
        pytest.fail("used")
    assert registry._replicas == {} and registry._users == {}


def test_a_vm_that_nothing_is_known_of_is_not_made(context: Context) -> None:
    registry = Registry(context)
    with pytest.raises(NotProtected), registry.known("vm"):
        pytest.fail("made")


def test_one_thread_beats_for_all_and_sees_who_is_silent(context: Context) -> None:
    """A primary that does not read, or a replica whose look fails, keeps no other one waiting."""
    registry = Registry(context)
    stream: Any = Stream()
    with registry.using("vm") as replica:
        assert isinstance(replica.greet(stream, hello()), Welcome)

        def fails() -> None:
            raise ZeroDivisionError

        broken: Any = SimpleNamespace(log=lambda log: log, look=fails, beat=fails)
        ticker = Ticker(lambda: [broken, *registry.live()])
        threads = threading.active_count()
        ticker.start()
        eventually(lambda: stream.beats > 2)
        assert threading.active_count() <= threads + 1
        assert replica.take(stream, Frame(FrameType.COMMIT, 1, 1, pack(Commit(0, 0, []))))
        stream.last_heard = time.monotonic() - 60
        eventually(lambda: context.store.load("vm").role == "promoted")
        ticker.stop()


def test_a_replica_that_is_still_being_taken_away_is_not_forgotten(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one would make a standby while the first takes its own away: the same domain, the same images."""
    closing, may = threading.Event(), threading.Event()

    def slow(_machine: FakeMachine, *, keep_images: bool) -> None:
        closing.set()
        assert may.wait(20)

    registry = Registry(context)
    stream: Any = Stream()
    with registry.using("vm") as replica:
        assert isinstance(replica.greet(stream, hello()), Welcome)
        monkeypatch.setattr(FakeMachine, "close", slow)
        threading.Thread(target=FakeMachine.made[0].broken, args=(OSError("torn"),), daemon=True).start()
        assert closing.wait(20)
    assert registry.live() == [replica]
    with registry.using("vm") as same:
        assert same is replica
    may.set()
    eventually(lambda: registry.live() == [])
