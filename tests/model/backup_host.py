# SPDX-License-Identifier: Apache-2.0
"""An agent of the model: performs what `core/backup.py` decides, and reads frames, a step at a time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from remusdb.core import backup_effects as effects
from remusdb.core import backup_events as events
from remusdb.core.backup import Backup
from remusdb.core.drive import drive
from remusdb.core.messages import Hello, Notice, Refuse, Standing, Taken, Welcome, pack, unpack
from remusdb.core.ownership import Verdict, give_back, take_over
from remusdb.core.standby import Phase
from remusdb.core.wire import BULK, Frame, FrameType
from remusdb.errors import BadFrame, PeerUnreachable, RemusError
from remusdb.reasons import Code, Reason
from remusdb_agents.backup.inbox import Inbox, WholeEpoch
from tests.model.world import CELLS, VM, Connection, End, mask

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.model.hosts import Host
    from tests.model.primary_host import Step


@dataclass
class Replica:
    """What a standby has of the VM."""

    term: int
    cells: list[int] = field(default_factory=lambda: [0] * CELLS)
    devices: int = 0
    taken: int = 0
    to_apply: deque[WholeEpoch] = field(default_factory=deque)

    def apply(self, frames: list[Frame]) -> None:
        """Deltas, and the device state."""
        for frame in frames:
            payload = bytes(frame.payload)
            if frame.type is FrameType.DEVICES:
                self.devices = int.from_bytes(payload, "little")
            else:
                self.cells[payload[0]] ^= int.from_bytes(payload[1:], "little")


class Agent:
    """Of one host; it may be down."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._world = host.world
        self.core: Backup | None = None
        self.start()

    @property
    def alive(self) -> bool:
        return self.core is not None

    @property
    def phase(self) -> Phase | None:
        return self.core.phase if self.core is not None else None

    @property
    def line(self) -> int | None:
        """The connection that feeds the standby."""
        return self.core.now.line if self.core is not None else None

    def start(self) -> None:
        """The daemon starts, from what is durable."""
        self.replica: Replica | None = None
        self.inbox = Inbox(1 << 30)
        self.apart: list[Step] = []
        self.gathered: list[events.Committed] = []  # whole epochs in the hands of receiving threads
        self.connections: dict[int, Connection] = {}
        self.greeting: set[int] = set()  # of these, those whose HELLO is not answered
        self.core = Backup(VM, self.host.name, self._durable())
        self._tell(events.Recover(self._world.arbiter is not None))

    def die(self) -> None:
        """And with it a standby and its connections: not a VM that runs."""
        for connection in self.connections.values():
            connection.cut = True
        self.core = self.replica = None
        self.apart, self.gathered, self.connections = [], [], {}

    # --- what can be done next ---

    def accept(self, connection: Connection) -> None:
        """A new connection; its HELLO is read whenever."""
        self.connections[connection.line] = connection

    def steps(self) -> list[Step]:
        """Each with a name."""
        if self.core is None:
            return []
        found: list[Step] = list(self.apart)
        found += [("commit", partial(self._commit, whole)) for whole in self.gathered]
        for connection in list(self.connections.values()):
            if connection.line in self.greeting or any(whole.line == connection.line for whole in self.gathered):
                continue  # its thread waits for the answer to HELLO, or has an epoch in hands
            if connection.to_agent:
                found += [("agent hears", partial(self._hear_next, connection))] * 2
            elif connection.cut:
                found.append(("agent lost", partial(self._lost, connection)))
        if self.replica is not None and self.replica.to_apply:
            found.append(("apply", self._apply_one))
        return found

    @property
    def at_rest(self) -> bool:
        """Whether nobody waits at its door, and nothing is under way but epochs."""
        frames = [frame for connection in self.connections.values() for frame in connection.to_agent]
        other = any(frame.type in (FrameType.HELLO, FrameType.BYE, FrameType.TAKEOVER) for frame in frames)
        return not (self.apart or self.greeting or other)

    def silence(self) -> None:
        """The primary is not heard for as long as is configured."""
        if self.core is None:
            return
        if self.phase is Phase.SEEDING:
            self._tell(events.CopySilent(self.core.now.session_term, 1))
        elif self.phase is Phase.READY:
            self._take_over("silence", word=False)

    def failover(self, *, word: bool) -> None:
        """An operator asks for it. `word`: that the primary is dead."""
        if self.core is not None:
            self._take_over("order", word=word)

    def breaks(self) -> None:
        """The standby is torn."""
        if self.replica is not None:
            self._tell(events.Broken(self.replica.term, "it broke"))

    def fails(self) -> bool:
        """The step of a takeover that is under way fails; False where there is none."""
        for step in self.apart:
            if step[0] in ("resume", "cold start", "drain"):
                self.apart.remove(step)
                self._tell(events.TakeoverFailed(RemusError("QEMU is gone")))
                return True
        return False

    def standing(self) -> Standing:
        """What is said to another host that asks."""
        assert self.core is not None
        self._reread()
        return self.core.standing()

    # --- frames ---

    def _hear_next(self, connection: Connection) -> None:
        if connection.to_agent:
            self.host.deliver(connection.to_agent, partial(self._hear, connection))

    def _hear(self, connection: Connection, frame: Frame) -> None:
        assert self.core is not None
        line = connection.line
        try:
            if frame.type is FrameType.HELLO:
                hello = unpack(Hello, frame.payload)
                self.greeting.add(line)
                self._tell(events.Hailed(line, connection.primary, hello))
            elif not self.core.follows(line, frame.term):
                connection.cut = True  # its thread ends
                self._lost(connection)
            elif frame.type in BULK and frame.epoch == 0:
                self._take(connection, frame)
            elif frame.type in BULK:
                self.inbox.add(frame)
            elif frame.type is FrameType.COMMIT:
                whole = self.inbox.close(frame, 0)
                self.gathered.append(events.Committed(line, whole.term, whole.epoch, data=whole))
            elif frame.type is FrameType.BYE:
                notice = unpack(Notice, frame.payload)
                self._tell(events.Bye(line, notice.reason, notice.forget))
            elif frame.type is FrameType.TAKEOVER:
                self._tell(events.SwitchoverAsked(line, "asked for"))
        except BadFrame as exc:
            raise AssertionError(f"between two correct sides: {exc}") from exc

    def _take(self, connection: Connection, frame: Frame) -> None:
        """A frame of the initial sync."""
        replica = self.replica
        assert replica is not None
        assert not self.core or not self.core.now.standby.committed, "a frame of the initial sync after its end"
        replica.apply([frame])
        replica.taken += 1
        self._send(connection, FrameType.TAKEN, frame.term, pack(Taken(replica.taken)))

    def _commit(self, whole: events.Committed) -> None:
        if whole in self.gathered:
            self.gathered.remove(whole)
            try:
                self._tell(whole)
            except BadFrame:  # one before it came while the arbiter was asked, and was dropped
                connection = self.connections[whole.line]
                connection.cut = True
                self._lost(connection)

    def _lost(self, connection: Connection) -> None:
        """A receiving thread commits what it has in hands before it sees the end of its connection."""
        for whole in [whole for whole in self.gathered if whole.line == connection.line]:
            self._commit(whole)
        self.connections.pop(connection.line, None)
        self._tell(events.Lost(connection.line, "the connection broke"))

    def _apply_one(self) -> None:
        replica, core = self.replica, self.core
        if replica is None or not replica.to_apply or core is None:
            return
        whole = replica.to_apply.popleft()
        replica.apply(whole.frames)
        self._tell(events.Applied(whole.term, whole.epoch))

    def _send(self, connection: Connection, kind: FrameType, term: int, payload: bytes = b"", epoch: int = 0) -> None:
        End(self._world, connection, is_agent=True).send(kind, term, epoch, payload)

    # --- decisions ---

    def _take_over(self, cause: events.Cause, *, word: bool) -> None:
        self._tell(
            events.TakeOver(
                0, cause, Reason.of(Code.OTHER, why=cause), word=word, arbiter=self._world.arbiter is not None
            )
        )

    def _durable(self) -> events.Durable:
        state = self.host.store.state
        return events.Durable(
            state.role, state.term, state.owner, state.peer, state.uuid, state.why, state.armed, state.quarantined,
            state.resuming,
        )  # fmt: skip

    def _reread(self) -> None:
        if self.core is not None and self.core.rereads:
            drive(self.core.handle(events.Read(self._durable())), self._perform)

    def _tell(self, event: events.Event) -> None:
        """Have it decided; what is begun by it is performed after it, in order."""
        core = self.core
        if core is None:
            return
        self._world.log.append(f"  {self.host.name}'s agent {event}"[:200])
        if isinstance(event, events.READS):
            self._reread()
        self._begun: list[effects.Effect] = []
        drive(core.handle(event), self._perform)
        begun, self._begun = self._begun, []
        for effect in begun:
            self._begin(effect)

    def _perform(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Save(role, why, changes):
                try:
                    self.host.store.save(role=role, why=why, **changes)
                finally:
                    if changes.get("resuming") and self.host.store.state.resuming and self.replica is not None:
                        # Its disks outlive this daemon.
                        self.host.image = sum(self.replica.cells)
            case effects.Learn(term):
                self.host.store.save(term=term)
            case effects.Admit(line, term, committed, resumed):
                self.greeting.discard(line)
                taken = self.replica.taken if self.replica is not None and resumed else 0
                self.inbox.clear()
                self._send(
                    self.connections[line], FrameType.WELCOME, term,
                    pack(Welcome("1", self.host.name, term, committed, resumed, 500, taken=taken)),
                )  # fmt: skip
            case effects.Refused(line, refuse):
                self.greeting.discard(line)
                self._send(self.connections[line], FrameType.REFUSE, refuse.term, pack(refuse))
            case effects.LetGo(line, close):
                self.inbox.clear()
                if close and line in self.connections:
                    self.connections[line].cut = True
            case effects.Apply(_, _, data):
                assert self.replica is not None
                assert isinstance(data, WholeEpoch)
                self.replica.to_apply.append(data)
            case effects.Try():
                self._apart("switch", lambda: self._take_over("switchover", word=False))
            case effects.RequireRoom() | effects.RequireSilence() | effects.ReleaseRoom() | effects.SetAside():
                pass
            case effects.Tell() | effects.Trouble() | effects.Outcome():
                pass
            case _:
                self._begun.append(effect)

    def _begin(self, effect: effects.Effect) -> None:
        """What takes its time; its result is a new event."""
        tell = self._tell
        match effect:
            case effects.Send(line, kind, term, epoch, reason):
                self._said(line, kind, term, epoch, reason)
            case effects.Later(event):
                self._apart("later", lambda: tell(event))
            case effects.LookUp(hailed):
                self._apart("look up", lambda: tell(self._looked_up(hailed)))
            case effects.YieldVm(hailed):
                self._apart("yield", lambda: self._yield_vm(hailed))
            case effects.StartStandby(line, term, _):
                self._apart("start", lambda: self._start_standby(line, term))
            case effects.CloseStandby() | effects.Sweep():
                self._apart("close", self._close_standby)
            case effects.Decline(line, serial, term, why):
                self._said(line, FrameType.DECLINE, term, 0, why)
                self._apart("declined", lambda: tell(events.Declined(serial, why)))
            case effects.ReadArbiter(asked, owner, term):
                self._apart("read", lambda: tell(self._arbiter_read(asked, owner, term)))
            case effects.Claim(owner, term):
                self._claim(owner, term, may_be_won=False)
            case effects.Drain():
                self._apart("drain", self._drain)
            case effects.Resume():
                self._apart("resume", self._resume)
            case effects.ColdStart():
                self._apart("cold start", self._resume)
            case effects.Announce(_, at_ns, how):
                self._apart("announce", lambda: tell(events.Announced(at_ns, how)))
            case effects.HandBack(owner, term):
                if self._world.arbiter is not None:
                    self._hand_back(owner, term)
            case effects.LookIfRuns():
                self._apart("find", lambda: tell(events.Found(self.host.vm is not None, 1)))
            case effects.Prove() | effects.AwaitRoom():
                pass
            case _:
                raise AssertionError(effect)

    def _apart(self, name: str, work: Callable[[], object]) -> None:
        step: Step = (name, lambda: self._done(step, work))
        self.apart.append(step)

    def _done(self, step: Step, work: Callable[[], object]) -> None:
        if step in self.apart:
            self.apart.remove(step)
            work()

    def _said(self, line: int, kind: FrameType, term: int, epoch: int, reason: str) -> None:
        state = self.host.store.state
        if kind is FrameType.ACK:
            assert (state.term, state.role) == (term, "standby"), "acknowledged in an old term"
        elif kind is FrameType.RENOUNCE:
            assert state.role not in ("standby", "promoting", "promoted"), "renounced before it was durable"
        if line in self.connections:
            payload = pack(Notice(reason)) if kind is not FrameType.ACK else b""
            self._send(self.connections[line], kind, term, payload, epoch)

    def _looked_up(self, hailed: events.Hailed) -> events.LookedUp:
        if self._world.arbiter is None:
            return events.LookedUp(hailed)
        try:
            return events.LookedUp(hailed, (), "one", self._world.arbiter.look(self.host.name))
        except PeerUnreachable as exc:
            return events.LookedUp(hailed, (), "one", away=str(exc))

    def _arbiter_read(self, asked: events.TakeOver, owner: str, term: int) -> events.ArbiterRead:
        assert self._world.arbiter is not None
        try:
            return events.ArbiterRead(asked, owner, term, self._world.arbiter.look(self.host.name))
        except PeerUnreachable as exc:
            return events.ArbiterRead(asked, owner, term, away=str(exc))

    def _yield_vm(self, hailed: events.Hailed) -> None:
        """The host daemon quarantines what this host ran."""
        host, hello = self.host, hailed.hello
        host.store.save(
            role="fenced", owner=hello.primary, term=max(hello.term, host.store.state.term), quarantined=False
        )
        host.quarantine()
        self._tell(events.Quarantined(hailed))

    def _start_standby(self, line: int, term: int) -> None:
        host = self.host
        if host.vm is not None:  # libvirt has a VM of that name
            refuse = Refuse("a VM of that name runs here", code="preflight")
            return self._tell(events.NotStarted(line, refuse.reason, refuse))
        self.replica = Replica(term)
        self._tell(events.Started(line))

    def _close_standby(self) -> None:
        if self.replica is not None and self.host.vm is None:
            self.host.image = None  # what its disks hold is no VM's
        self.replica = None
        self._tell(events.Gone())

    # --- a takeover ---

    def _claim(self, owner: str, term: int, *, may_be_won: bool) -> None:
        self._apart("claim", lambda: self._ask(owner, term, may_be_won))

    def _ask(self, owner: str, term: int, may_be_won: bool) -> None:
        """Until the answer is definite, or it is certain that nobody saw the question."""
        assert self._world.arbiter is not None
        claim = self._world.arbiter.claim(self.host.name, take_over(self.host.name, owner, term))
        if claim.verdict is Verdict.UNKNOWN or (claim.verdict is Verdict.UNREACHED and may_be_won):
            self._claim(owner, term, may_be_won=True)
            self._tell(events.ArbiterWaits("no answer"))
        else:
            self._tell(events.Claimed(claim.verdict, claim.record))

    def _drain(self) -> None:
        while self.replica is not None and self.replica.to_apply:
            self._apply_one()
        self._tell(events.Drained())

    def _resume(self) -> None:
        """The replica becomes the VM: it is exactly one epoch that was cut."""
        core, replica = self.core, self.replica
        assert core is not None
        if replica is None:
            return self._tell(events.TakeoverFailed(RemusError("the standby is gone")))
        epoch = self._world.cuts[replica.term, core.now.standby.committed]
        state = 0
        for cell, value in enumerate(replica.cells):
            assert value == epoch & mask(cell, epoch), "the replica is not exactly one epoch: memory"
            state |= value
        assert replica.devices == epoch, "the replica is not exactly one epoch: devices"
        self._world.instant()
        self.host.image = None
        self.host.vm = self._world.start(state)
        self._world.instant()
        self._tell(events.Runs(1))

    def _hand_back(self, owner: str, term: int) -> None:
        def ask() -> None:
            assert self._world.arbiter is not None
            claim = self._world.arbiter.claim(self.host.name, give_back(self.host.name, owner, term))
            if claim.verdict not in (Verdict.WON, Verdict.LOST):
                self._hand_back(owner, term)

        self._apart("hand back", ask)
