# SPDX-License-Identifier: Apache-2.0
"""A worker of the model: performs what `core/primary.py` decides, and does what protect() does, a step at a time."""

from __future__ import annotations

import struct
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from remusdb.core import primary_effects as effects
from remusdb.core import primary_events as events
from remusdb.core.drive import drive
from remusdb.core.messages import Commit, Hello, Notice, Refuse, Taken, Welcome, pack, unpack
from remusdb.core.ownership import Verdict, go_solo, open_session
from remusdb.core.pipeline import PrimaryState
from remusdb.core.primary import Known, Primary
from remusdb.core.terms import following
from remusdb.core.wire import Frame, FrameType
from remusdb.errors import BadFrame, Fenced, NoStandby, PeerUnreachable, RemusError
from remusdb.reasons import Code, Reason
from remusdb.transport.agent_client import refused
from remusdb.worker.encoder import EpochFrames
from remusdb.worker.outbox import Outbox
from tests.model.world import CELLS, UUID, VM, Connection, End

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.model.hosts import Host

ROUNDS = 2  # of the initial sync: a delta that is applied twice, or not at all, is seen
Step = tuple[str, "Callable[[], object]"]
CELL = struct.Struct("<B")


BROKEN = Reason.of(Code.OTHER, why="it broke")


class Worker:
    """One session of one host. `orphan`: to undo what an earlier worker left."""

    def __init__(self, host: Host, *, orphan: bool = False, peer_is_dead: bool = False) -> None:
        self.host, self.orphan = host, orphan
        self._world, self._peer_is_dead = host.world, peer_is_dead
        self._arbiter = self._world.arbiter
        state = host.store.state
        self.peer = state.peer
        known = Known(
            vm=VM, host=host.name, peer=state.peer, term=state.term, armed=state.armed, wanted=state.wanted,
            paused=state.paused, solo_after_s=1.0 if self._arbiter else None,
        )  # fmt: skip
        self.core = Primary(known, window=2)
        self.outbox = Outbox(seed_bytes_s=0)
        self.connection: Connection | None = None  # on which the agent is heard
        self.ended = self.working = self.final = False
        self.deaf = False  # nobody listens to the agent any more
        self.stage = "hello"  # of protect(): hello, claim, copy, epochs, settled; or failed
        self.timers: set[events.Timer] = set()
        self.apart: list[Step] = []  # what is under way in threads of their own
        self.to_seed: deque[int] = deque()
        self.to_ship: deque[EpochFrames] = deque()
        self._welcome: Welcome | None = None
        self._shadow = [0] * CELLS
        self._lines: dict[int, Connection] = {}
        self._posted: deque[events.Event] = deque()

    # --- what can be done next ---

    def steps(self) -> list[Step]:
        """Each with a name."""
        found: list[Step] = list(self.apart)
        connection = self.connection
        if self.ended:
            return []
        if self.stage == "hello" and connection is None:
            found.append(("hello", self._say_hello))
        elif connection is not None and connection.line in self._lines:
            pass  # whether the session goes on over it is being decided
        elif connection is not None and connection.to_primary:
            found += [("hear", partial(self.host.deliver, connection.to_primary, self.hear))] * 2
        elif connection is not None and connection.cut:
            found.append(("lost", self.lost))
        elif connection is None and self.stage != "hello" and not self.deaf:
            found.append(("reconnect", self._say_hello))
        if self.stage == "claim":
            found.append(("begin", self._begin))
        elif self.stage == "copy" and (self.core.over or self.host.vm is None):
            found.append(("fail", partial(self.fail, "it was ended")))
        elif self.stage == "copy" and self.to_seed:
            found.append(("seed", self._seed))
        elif self.stage == "copy" and not self.outbox._copy.waiting and self.host.vm is not None:
            found.append(("arm", self._copied))
        elif self.stage == "epochs" and self.core.failed_in_copy:
            found.append(("fail", partial(self.fail, "it broke")))
        elif self.stage == "epochs" and self.core.pipeline.committed:
            found.append(("settle", self._settled))
        if self.working and self.host.vm is None and not self.core.over:
            found.append(("cut fails", partial(self.tell, events.Failed(BROKEN))))
        elif self.working and not self.final and self.core.pipeline.next_epoch() is not None:
            found.append(("cut", self.cut))
        if self.to_ship:
            found.append(("ship", self._ship))
        return found

    def late_steps(self) -> list[Step]:
        """Timers: what happens if nothing else does."""
        if self.ended:
            return []
        return [(f"{timer} is over", partial(self._time_is_up, timer)) for timer in sorted(self.timers)]

    # --- protect() ---

    def start(self) -> None:
        """Its first event."""
        self.tell(events.Opened())

    def fail(self, why: str) -> None:
        """protect() raises."""
        self.stage = "failed"
        self.tell(events.Abandoned(Reason.of(Code.OTHER, why=why), again=True))

    def _say_hello(self) -> None:
        pipeline, resume = self.core.pipeline, self.stage != "hello" or self.orphan
        arbiter = "one" if self._arbiter and not resume else ""
        hello = Hello("1", self.host.name, VM, UUID, pipeline.term, resume, 0, "q35", "", [], [], 50, "10", arbiter)
        try:
            frame = Frame(FrameType.HELLO, hello.term, 0, pack(hello))
            self.connection = self._world.connect(self.host.name, self.peer, frame)
        except PeerUnreachable as exc:
            if self.orphan:
                self._orphaned(False, str(exc))
            elif self.stage == "hello":
                self.fail(str(exc))

    def _begin(self) -> None:
        welcome = self._welcome
        assert welcome is not None
        try:
            self.tell(events.Welcomed(welcome.term))
            if self._arbiter is not None:
                claim = self._arbiter.claim(self.host.name, open_session(self.host.name, welcome.term))
                if claim.verdict not in (Verdict.WON, Verdict.LOST):
                    raise PeerUnreachable("the arbiter does not answer")
                self.tell(events.SessionClaimed(claim, "key"))
            self.tell(events.Begun(welcome.term, {"uuid": UUID}))
            self.stage, self.to_seed = "copy", deque(range(CELLS)) * ROUNDS
        except RemusError as exc:
            self.fail(str(exc))

    def _seed(self) -> None:
        self.outbox.seed([(FrameType.PAGES, self._delta(self.to_seed.popleft()))])

    def _copied(self) -> None:
        try:
            self.tell(events.Copied())
            self.stage = "epochs"
        except RemusError as exc:
            self.fail(str(exc))

    def _settled(self) -> None:
        self.stage = "settled"
        self.tell(events.Settled())

    def cut(self) -> None:
        """One epoch: its marks, its memory, at one instant."""
        vm, pipeline = self.host.vm, self.core.pipeline
        epoch = pipeline.next_epoch()
        assert vm is not None
        assert vm.held is not None, "an epoch is cut with the gate open"
        assert epoch is not None
        vm.held = [(state, epoch if marked is None else marked) for state, marked in vm.held]
        cells = vm.cells()
        frames = [(FrameType.PAGES, self._delta(cell)) for cell in range(CELLS) if cells[cell] != self._shadow[cell]]
        frames.append((FrameType.DEVICES, number(vm.state)))
        self._world.cuts[pipeline.term, epoch] = vm.state
        pipeline.cut(epoch)
        size = sum(len(payload) for _, payload in frames)
        self.to_ship.append(EpochFrames(epoch, frames, Commit(len(frames), size, [])))

    def _ship(self) -> None:
        self.outbox.ship(self.to_ship.popleft())

    def _delta(self, cell: int) -> bytes:
        assert self.host.vm is not None
        now = self.host.vm.cells()[cell]
        delta, self._shadow[cell] = now ^ self._shadow[cell], now
        return CELL.pack(cell) + number(delta)

    # --- the agent ---

    def hear(self, frame: Frame) -> None:
        """One frame of its connection."""
        try:
            self._hear(frame)
        except BadFrame:
            self.lost()

    def _hear(self, frame: Frame) -> None:
        match frame.type:
            case FrameType.WELCOME:
                self._welcomed(unpack(Welcome, frame.payload))
            case FrameType.REFUSE:
                self._refused(refused(self.peer, unpack(Refuse, frame.payload), self.core.pipeline.term))
            case FrameType.ACK:
                self.core.pipeline.require_cut(frame.term, frame.epoch)
                self.tell(events.Acked(frame.term, frame.epoch))
            case FrameType.TAKEN:
                self.outbox.seed_taken(unpack(Taken, frame.payload).frames)
            case FrameType.RENOUNCE if self.orphan:
                self._orphaned(True)
            case FrameType.RENOUNCE:
                self._close()
                self.tell(events.Renounced("it gave up"))
            case FrameType.DECLINE:
                self.tell(events.Declined("it does not"))

    def _welcomed(self, welcome: Welcome) -> None:
        connection = self.connection
        assert connection is not None
        stream: Any = End(self._world, connection, is_agent=False)
        if self.orphan:
            stream.send(FrameType.BYE, welcome.term, 0, pack(Notice("unprotect was asked for", forget=True)))
        elif self.stage == "hello":
            self._welcome, self.stage = welcome, "claim"
            self.outbox.attach(stream, welcome.term, 0)
        else:
            self._lines[connection.line] = connection
            try:
                self.tell(events.Resumed(welcome.term, welcome.committed, welcome.taken, connection.line))
            except RemusError:  # BadFrame, or the session is over
                self._lines.pop(connection.line, None)
                connection.cut, self.connection = True, None

    def _refused(self, error: RemusError) -> None:
        first = self.stage == "hello"
        self._drop()
        if isinstance(error, BadFrame):
            return
        if self.orphan and not isinstance(error, Fenced):
            return self._orphaned(isinstance(error, NoStandby), str(error))
        if isinstance(error, Fenced):
            try:
                self._close()
                self.tell(events.FencedOff(error.term, str(error)))
            except RemusError as exc:
                error = exc
            if first and not self.orphan:
                self.fail(str(error))
        elif first:
            self.fail(str(error))
        elif isinstance(error, NoStandby):
            if not self.core.pipeline.captured:
                return self.tell(events.Failed(Reason.by(error)))
            self._close()
            self.tell(events.Renounced(str(error)))

    def lost(self) -> None:
        """The connection is gone."""
        first = self.stage in ("hello", "claim")
        self._drop()
        if self.orphan:
            self._orphaned(False, "the connection broke")
        elif first:
            self.fail("the connection broke")
        else:
            self.tell(events.Lost("the connection broke"))

    def switch_over(self) -> None:
        """An operator moves the VM."""
        try:
            self.tell(events.Switchover(still=False))
        except RemusError:
            pass  # not now

    def unprotect(self, *, peer_is_dead: bool) -> None:
        """An operator ends protection."""
        self.tell(events.Unprotect(peer_is_dead))

    def die(self) -> None:
        """Killed: its connections go with it."""
        for connection in (self.connection, *self._lines.values()):
            if connection is not None:
                connection.cut = True
        self.ended = True

    def give_up_copy(self) -> None:
        """The agent was away for too long in the initial sync."""
        self.tell(events.Failed(BROKEN))

    def _orphaned(self, word: bool, why: str = "") -> None:
        try:
            self.tell(events.UnprotectOrphan(self.core.pipeline.term, word, self._peer_is_dead, why))
        except RemusError:
            pass  # the operator is told; what is held stays held

    def _drop(self) -> None:
        if self.connection is not None:
            self.connection.cut, self.connection = True, None

    def _close(self) -> None:
        """Nothing more is heard of the agent."""
        self._drop()
        self.deaf = True

    # --- decisions ---

    def tell(self, event: events.Event) -> None:
        """Have it decided, and all that follows performed. RemusError when it is refused."""
        self._world.log.append(f"  {self.host.name} {event}")
        drive(self.core.handle(event), self._perform)
        while self._posted:
            drive(self.core.handle(self._posted.popleft()), self._perform)

    def _time_is_up(self, timer: events.Timer) -> None:
        self.timers.discard(timer)
        self.tell(events.TimeIsUp(timer))

    def _perform(self, effect: effects.Effect) -> None:
        host, vm = self.host, self.host.vm
        match effect:
            case effects.Save(changes):
                host.store.save(**changes)
            case effects.SetTimer(timer, _):
                self.timers.add(timer)
            case effects.AdoptGates():
                if vm is not None and vm.held is not None:
                    self._posted.append(events.Adopted())
            case effects.HoldOutput():
                assert vm is not None
                vm.held = vm.held or []
            case effects.ReleaseEpochs(epoch):
                host.release(epoch, self.core.pipeline.term)
                self.outbox.acked(epoch)
            case effects.OpenGates() | effects.TakeDown(open_gates=True):
                host.open()
            case effects.DropHeld():
                if vm is not None:
                    vm.held = []
            case effects.StartEpochs():
                self.working = True
            case effects.StopWork():
                self.working = False
                self.to_ship.clear()
            case effects.StartVm():
                if vm is not None:
                    vm.running = True
            case effects.CutOn():
                self.final = False
            case effects.StopAndCut():
                self._apart("stop and cut", self._stop_and_cut)
            case effects.LookAtVm():
                self._apart("look", self._look)
            case effects.AskWhoEndedIt():
                self._apart("who ended it", self._who)
            case effects.AskArbiter():
                self._apart("ask", partial(self._ask, effect))
            case effects.End():
                self.ended = True
                self._drop()
            case effects.Report() | effects.Answer() | effects.InstallGates() | effects.TakeDown():
                pass
            case effects.RestoreAutostart() | effects.FallSilent():
                pass
            case _:
                self._perform_with_agent(effect)

    def _perform_with_agent(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Attach(line, term, committed, taken):
                stream: Any = End(self._world, self._lines[line], is_agent=False)
                self.outbox.attach(stream, term, committed, taken)
                del self._lines[line]
            case effects.HangUp(line):
                self._lines.pop(line).cut = True
                self.connection = None
            case effects.SayBye(why, forget, line):
                notice = pack(Notice(why, forget=forget))
                if line is None:
                    return self.outbox.say(FrameType.BYE, notice)
                End(self._world, self._lines.pop(line), is_agent=False).send(
                    FrameType.BYE, self.core.pipeline.term, 0, notice
                )
            case effects.SayTakeOver():
                self.outbox.say(FrameType.TAKEOVER, pack(Notice("asked for")))
            case effects.Detach():
                self.outbox.detach()
            case effects.ClosePeer():
                self.outbox.detach()
                self._close()
            case _:
                raise AssertionError(effect)

    # --- what takes long ---

    def _apart(self, name: str, work: Callable[[], events.Event]) -> None:
        step: Step = (name, lambda: self._done(step, work))
        self.apart.append(step)

    def _done(self, step: Step, work: Callable[[], events.Event]) -> None:
        if step in self.apart:
            self.apart.remove(step)
            self.tell(work())

    def _stop_and_cut(self) -> events.Event:
        vm = self.host.vm
        if vm is None or not self.working or self.core.pipeline.next_epoch() is None:
            return events.NotCut("it cannot be cut")
        vm.running, self.final = False, True
        self.cut()
        return events.LastCut(self.core.pipeline.captured)

    def _look(self) -> events.Event:
        return events.VmLives() if self.host.vm is not None else events.VmEnds(crashed=not self.host.wanted_off)

    def _who(self) -> events.Event:
        return events.VmEnded(wanted=self.host.wanted_off, with_host=False, why=Reason.of(Code.ENDED))

    def _ask(self, question: effects.AskArbiter) -> events.Event:
        assert self._arbiter is not None
        rule = go_solo(self.host.name, question.term)
        if question.given_back:
            rule = open_session(self.host.name, following(following(question.term)))
        return events.ArbiterSaid(self._arbiter.claim(self.host.name, rule))

    @property
    def is_protected(self) -> bool:
        return self.core.phase is PrimaryState.PROTECTED


def number(value: int) -> bytes:
    """A number of any size."""
    return value.to_bytes((value.bit_length() + 7) // 8, "little")
