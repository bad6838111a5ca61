# SPDX-License-Identifier: Apache-2.0
"""The initial sync over connections that break: what each side keeps, sends again and waits for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remusdb.config import Protection, Tls
from remusdb.core.copylog import CopyLog
from remusdb.core.messages import Commit, Hello, Welcome
from remusdb.core.wire import Frame, FrameType
from remusdb.disk.resync_filter import ResyncFilters
from remusdb.disk.stream import LogStream
from remusdb.errors import BadFrame, DiskError, NoStandby, PeerUnreachable, RemusError
from remusdb.transport.agent_client import Agent, Greeting
from remusdb.worker.agent_link import AgentLink
from remusdb.worker.brake import FULL_SPEED, GUEST_WAITS_S, SLOW_BYTES_S, Brake, BrakeThread
from remusdb.worker.encoder import EpochFrames
from remusdb.worker.outbox import COPY_MAX_BYTES, Outbox
from remusdb.worker.spec import PeerAddress, ProtectionSpec
from remusdb_agents.backup.seeding import Seeding, TornCopy
from tests.waiting import eventually


class Wire:
    """A connection that remembers what was sent; `stuck`: to a peer that does not read, until it is closed."""

    def __init__(self, stuck: bool = False) -> None:
        self.sent: list[tuple[int, bytes]] = []
        self.sending, self.closed = threading.Event(), threading.Event()
        self._stuck = stuck

    def send_many(self, frames: Any) -> None:
        self.sending.set()
        if self._stuck:
            assert self.closed.wait(5)
        if self.closed.is_set():
            raise PeerUnreachable("closed on this side")
        self.sent += [(epoch, bytes(payload[:1])) for _kind, _term, epoch, payload in frames]

    def close(self) -> None:
        self.closed.set()


def wire(stuck: bool = False) -> Any:
    """It, in a stream's place."""
    return Wire(stuck)


def page(number: int, size: int = 1) -> tuple[FrameType, bytes]:
    return FrameType.PAGES, bytes([number]) * size


def apart(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_the_log_gives_back_exactly_what_was_not_taken() -> None:
    log = CopyLog(3)
    for number in range(3):
        assert not log.full
        log.add(page(number))
    assert log.full
    log.taken(1)
    log.taken(0)  # an older word
    assert not log.full and log.waiting == 2
    assert log.since(2) == [page(2)] and log.since(3) == [] and log.waiting == 0


@pytest.mark.parametrize("count", [0, 4])
def test_a_count_that_cannot_be_is_refused(count: int) -> None:
    log = CopyLog(1 << 20)
    for number in range(3):
        log.add(page(number))
    log.taken(1)
    with pytest.raises(BadFrame):
        log.since(count)


def test_a_lost_connection_is_gone_on_from_where_the_agent_is() -> None:
    outbox, first, second = Outbox(), wire(), wire()
    outbox.attach(first, 1, 0)
    outbox.seed([page(0), page(1), page(2)])
    outbox.seed_taken(1)
    outbox.detach()
    outbox.seed([page(3)])
    outbox.ship(EpochFrames(1, [(FrameType.DEVICES, b"c")], Commit(1, 1, [])))
    outbox.attach_apart(second, 1, 0, 2)
    eventually(lambda: len(second.sent) == 4)
    assert second.sent[:3] == [(0, b"\2"), (0, b"\3"), (1, b"c")]
    with pytest.raises(BadFrame):
        outbox.attach_apart(second, 1, 0, 5)


def test_a_connection_that_breaks_while_things_are_sent_again_does_not_outlive_the_next() -> None:
    outbox, stuck, last = Outbox(), wire(stuck=True), wire()
    outbox.seed([page(0), page(1)])
    outbox.attach_apart(stuck, 1, 0, 0)
    assert stuck.sending.wait(5)
    outbox.detach()
    outbox.attach_apart(last, 1, 0, 1)
    eventually(lambda: last.sent == [(0, b"\1")])
    outbox.seed([page(2)])
    assert last.sent == [(0, b"\1"), (0, b"\2")]


def test_the_copy_waits_for_room_and_no_longer_than_its_session() -> None:
    over = threading.Event()
    outbox, ended = Outbox(0, over), threading.Event()
    outbox.seed([page(0, COPY_MAX_BYTES)])

    def copy() -> None:
        outbox.seed([page(1)])
        with pytest.raises(PeerUnreachable):
            outbox.await_seeded()
        ended.set()

    copying = apart(copy)
    copying.join(0.3)
    assert outbox._copy.waiting == 1, "more than the bound is kept"
    outbox.seed_taken(1)
    eventually(lambda: outbox._copy.waiting == 1)
    assert not ended.is_set()
    over.set()
    assert ended.wait(5)


def test_what_the_agent_has_in_its_hands_is_counted_before_it_says_how_much_it_has() -> None:
    """Told one frame less, the primary would send that one again: a delta would be applied twice."""
    seeding, applying, go_on = Seeding(), threading.Event(), threading.Event()
    frame = Frame(FrameType.PAGES, 1, 0, b"")
    current = [True]

    def apply(_frame: Frame) -> None:
        applying.set()
        assert go_on.wait(5)

    old = apart(lambda: seeding.take(frame, lambda: current[0], apply))
    assert applying.wait(5)
    current[0] = False  # the next HELLO dropped this connection
    counted: list[int] = []
    greeting = apart(lambda: counted.append(seeding.pause()))
    greeting.join(0.2)
    assert counted == []
    go_on.set()
    old.join(5)
    greeting.join(5)
    assert counted == [1]
    assert seeding.take(frame, lambda: current[0], apply) is None and seeding.pause() == 1


def test_a_frame_that_cannot_be_applied_ends_the_session() -> None:
    def full(_frame: Frame) -> None:
        raise OSError("no space")

    with pytest.raises(TornCopy, match="no space"):
        Seeding().take(Frame(FrameType.WRITES, 1, 0, b""), lambda: True, full)


class Log:
    """A write log so full."""

    def __init__(self) -> None:
        self.filled = 0.0

    @property
    def pressed(self) -> bool:
        return self.filled >= 1


def test_half_of_the_log_is_the_guests() -> None:
    log: Any = Log()
    speeds: list[float] = []
    brake = Brake([log], speeds.append)
    for filled in (0.4, 0.6, 0.7, 0.4, 0.2, 0.3, 0.6):
        log.filled = filled
        assert brake.look(0.0, 0.0)
    assert speeds == [SLOW_BYTES_S, FULL_SPEED, SLOW_BYTES_S]
    brake.release()
    assert speeds[-1] == FULL_SPEED


def test_the_guests_writes_do_not_wait_for_a_backup_that_is_away() -> None:
    log: Any = Log()
    speeds: list[float] = []
    brake = Brake([log], speeds.append)
    log.filled = 1.0
    assert brake.look(10.0, 50.0) and brake.look(100.0, 50.0), "a backup that is slow is no reason"
    assert brake.look(100.0, 5000.0) and brake.look(100.0 + GUEST_WAITS_S / 2, 6000.0)
    assert not brake.look(100.0 + GUEST_WAITS_S, 7000.0)
    log.filled = 0.9
    assert brake.look(103.0, 9000.0)


def test_giving_up_is_told_once() -> None:
    log: Any = Log()
    told: list[Exception] = []
    log.filled = 1.0
    thread = BrakeThread(Brake([log], lambda _speed: None), lambda: 1e6, told.append)
    thread.start()
    thread.join(GUEST_WAITS_S + 5)
    thread.finish()
    assert [type(exc) for exc in told] == [PeerUnreachable]


def test_a_log_that_nobody_will_take_holds_nobody_up() -> None:
    stream = LogStream(4)
    stream.put(b"12345678")
    waiting = apart(stream.wait_for_room)
    waiting.join(0.1)
    assert waiting.is_alive()
    stream.discard()
    waiting.join(5)
    assert not waiting.is_alive()
    stream.put(b"9")
    assert stream.pressed is False and stream.pending_bytes == 0
    with pytest.raises(DiskError):
        stream.take(8, 0.1)


def test_the_agent_is_told_which_hashes_are_here() -> None:
    welcome = Welcome("0", "b", 1, 0, False, 500, [0, 16, 0])
    bases = ResyncFilters(welcome, [1 << 20, 1 << 20, 1 << 20])
    assert bases.told == [0, 0, 0]


class Listening:
    """A session in its initial sync."""

    def __init__(self) -> None:
        self.given_up: list[str] = []
        self.done = threading.Event()

    def may_be_replaced(self) -> bool:
        return False

    def on_lost(self, _reason: str) -> None:
        return

    def on_given_up(self, reason: str) -> None:
        self.given_up.append(reason)
        self.done.set()


@pytest.mark.parametrize(("answer", "why"), [(PeerUnreachable("no"), "away for 1 s"), (NoStandby("gone"), "gone")])
def test_the_primary_gives_the_copy_up_when_the_agent_stays_away_or_lost_it(answer: RemusError, why: str) -> None:
    class Away(Agent):
        def hello(self, hello: Hello, try_s: float | None = None) -> Greeting:
            raise answer

    class Dead:
        def receive(self, _timeout_s: float) -> None:
            raise PeerUnreachable("reset")

        def close(self) -> None:
            return

    listening: Any = Listening()
    protection = Protection(copy_patience_ms=1000, connect_timeout_ms=900)
    here = Path()
    spec = ProtectionSpec("vm", "a", "", here, here, here, PeerAddress("b", "192.0.2.2", 1), Tls(), protection)
    stream: Any = Dead()
    hello: Any = None
    found = AgentLink(spec, lambda: hello, listening, Away("b", "192.0.2.2", 1, Tls(), protection))
    began = time.monotonic()
    found.start(Greeting(stream, Welcome("0", "b", 1, 0, False, 500)))
    assert listening.done.wait(5)
    assert why in listening.given_up[0]
    assert (time.monotonic() - began > 0.9) == ("away" in why), "tried for so long, and a word ends it at once"
    found.close()
