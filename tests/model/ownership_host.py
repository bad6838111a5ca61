# SPDX-License-Identifier: Apache-2.0
"""One host of the model: its VM, its durable state, and the host daemon's side of the protocol (see ownership_world)."""

from __future__ import annotations

from ownership_agent import Agent
from ownership_world import Connection, Message, Store, Vm, World, following

from remusdb.core.ownership import Verdict, go_solo, open_session
from remusdb.core.pipeline import Pipeline, PrimaryState, Release
from remusdb.errors import BadFrame


class Session:
    """What a worker has in memory: asks ─▶ hello ─▶ claim ─▶ live, until it ends."""

    def __init__(self, phase: str) -> None:
        self.phase = phase
        self.pipeline = Pipeline(window=2)
        self.connection: Connection | None = None
        self.cuts: dict[int, int] = {}
        self.welcomed = self.ending = 0  # the term of the WELCOME; of the session of an earlier worker that is ended
        self.solo_asked = False  # the arbiter may have said yes
        self.overruled = self.switching = self.final_cut = False

    @property
    def held(self) -> bool:
        return self.phase == "live" and self.pipeline.state is PrimaryState.HELD


class Host:
    """One machine."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.store = Store(world)
        self.agent = Agent(self)
        self.up = True
        self.vm: Vm | None = None
        self.image: int | None = None  # the disks of a VM that is off
        self.session: Session | None = None

    @property
    def live(self) -> Session:
        assert self.session is not None
        return self.session

    @property
    def startable(self) -> bool:
        """The VM is off, and an operator may start it: nobody else can."""
        off = self.up and self.image is not None and not self.store.armed
        return off and self.store.role not in ("fenced", "standby", "promoting")

    @property
    def peer(self) -> str:
        return self.store.peer

    @property
    def put_away_done(self) -> bool:
        return self.vm is None and self.image is None

    # --- faults ---

    def worker_dies(self) -> None:
        if self.session is not None and self.session.connection is not None:
            self.session.connection.cut = True
        self.session = None
        if self.vm is not None and self.vm.held is not None:
            self.vm.held = []

    def crash(self) -> None:
        """Power cut: the VM is off, with what it had written on its disks."""
        self.worker_dies()
        self.agent.crash()
        self.up = False
        if self.vm is not None:
            self.image, self.vm = self.vm.state, None

    def boot(self) -> None:
        self.up = True
        self.agent.start()

    # --- what an operator asks for ---

    def start_vm(self) -> None:
        assert self.image is not None
        self.vm, self.image = self.world.start(self.image), None

    def protect(self, peer: str) -> None:
        """Protection, or another try at it: to another host only when no older one may take over."""
        self.store.save(wanted=True, peer=peer)

    def unprotect(self) -> None:
        self.store.save(wanted=False)
        if self.session is not None and self.session.phase == "live":
            self.bye()

    def switchover(self) -> None:
        assert self.vm is not None
        self.live.switching, self.vm.running = True, False

    # --- steps ---

    def take_up(self) -> None:
        """The daemon begins a session because one is wanted, or because an old one left the gate closed."""
        self.session = Session("ask" if self.store.armed else "hello")
        self.session.pipeline.term = self.store.term
        if self.store.armed:
            return self._connect(Message("ASK", self.store.term))
        self._hello(resume=False)

    def reconnect(self) -> None:
        self._hello(resume=True)

    def claim(self) -> None:
        """WELCOMEd in a new term: make it known to the arbiter, durable, then use it."""
        session, term = self.live, self.live.welcomed
        if self.world.arbiter is not None:
            claim = self.world.arbiter.claim(self.name, open_session(self.name, term))
            if claim.verdict is not Verdict.WON:  # also LOST: only a VM that runs elsewhere fences this one
                return self._end()
        self.store.save(role="seeding", term=term, owner=self.name, armed=False)
        session.pipeline.begin(term)
        session.phase = "live"
        self._open()

    def arm(self) -> None:
        """The initial copy is complete: from here on output is held."""
        assert self.vm is not None
        self.store.save(role="protected", armed=True)
        self.vm.held = []

    def cut(self) -> None:
        session, vm = self.live, self.vm
        assert vm is not None and vm.held is not None
        epoch = session.pipeline.next_epoch()
        if epoch is None:
            return
        vm.held = [(state, epoch if marked is None else marked) for state, marked in vm.held]
        session.cuts[epoch] = vm.state
        session.pipeline.cut(epoch)
        session.final_cut = session.switching
        self._say(Message("COMMIT", session.pipeline.term, epoch, vm.state))

    def hand_over(self) -> None:
        """The final epoch is acknowledged: the agent may go on."""
        self._say(Message("TAKEOVER", self.live.pipeline.term))

    def bye(self) -> None:
        self._say(Message("BYE", self.live.pipeline.term))

    def ask_solo(self) -> None:
        """Held for long enough: either the arbiter gives the VM to this side, or nothing may have changed."""
        session, arbiter = self.live, self.world.arbiter
        assert arbiter is not None
        term = session.pipeline.term
        claim = arbiter.claim(self.name, go_solo(self.name, term))
        if claim.verdict is Verdict.WON:
            self.store.save(role="solo", term=following(term), armed=False)
            session.pipeline.solo(following(term))
            self._end()
            self._open()
        elif claim.verdict is Verdict.LOST:
            session.overruled, session.solo_asked = True, False  # held, until the peer says what became of it
        elif claim.verdict is Verdict.UNKNOWN:
            session.solo_asked = True
            self._drop()

    def hear(self, message: Message) -> None:
        """One frame of the session's connection."""
        session, pipeline = self.live, self.live.pipeline
        try:
            if message.kind == "ACK" and session.phase == "live":
                self._release(pipeline.ack(message.term, message.epoch))
            elif message.kind == "WELCOME":
                self._welcome(message)
            elif message.kind == "REFUSE":
                self._refused(message)
            elif message.kind == "RENOUNCE" and message.term == (session.ending or pipeline.term):
                self.renounced()
            elif message.kind == "STANDING" and session.phase == "ask":
                self._standing(message)
            elif message.kind == "DECLINE" and session.switching:
                self._run_on()
        except BadFrame:
            self.lost()

    def lost(self) -> None:
        """The connection is gone."""
        session = self.live
        self._drop()
        if session.phase != "live":
            return self._end()
        session.pipeline.lost()
        if not session.held:  # no epoch went out, and a welcome means that no earlier replica is left
            self._end()
            self.store.save(role="seeding", armed=False)
            self._open()

    def fence(self, owner: str = "", term: int = 0) -> None:
        """Another host owns the VM: silent for ever, in this incarnation."""
        changes: dict[str, str | int] = {"owner": owner, "term": max(term, self.store.term)} if owner else {}
        self.store.save(role="fenced", armed=False, wanted=False, **changes)
        self.put_away()

    def put_away(self) -> None:
        """A fenced VM is destroyed."""
        self.worker_dies()
        self.vm = self.image = None

    # --- what follows from what was heard ---

    def _hello(self, resume: bool) -> None:
        self._connect(Message("HELLO", self.live.pipeline.term, resume=resume, owner=self.name))

    def _connect(self, message: Message) -> None:
        connection = self.live.connection = Connection(self.name, self.peer)
        self.world.hellos.append((self.name, self.peer, message))
        self.world.hosts[self.peer].agent.accept(connection)
        self.world.send(connection.to_agent, connection, message)

    def _standing(self, standing: Message) -> None:
        """Before anything else after a restart: has somebody taken the VM over?"""
        if standing.term > self.store.term and standing.owner != self.name:
            return self.fence(standing.owner, standing.term) if standing.owner else self._end()
        if self.world.arbiter is not None:
            found = self.world.arbiter.look(self.name)
            if found.verdict is not Verdict.WON:
                return self._end()
            record = found.record
            if record is not None and record.owner not in ("", self.name) and record.term > self.store.term:
                return self._end()
        self._drop()
        self.live.phase = "hello"
        if self.vm is None and self.store.wanted:
            return self._end()  # off: nothing to protect, and an operator decides
        self._hello(resume=not self.store.wanted)

    def _welcome(self, welcome: Message) -> None:
        session = self.live
        if not welcome.resume:
            if session.phase == "hello":
                session.phase, session.welcomed = "claim", welcome.term
        elif session.phase == "hello":  # to end a session that an earlier worker had
            session.ending = welcome.term
            self._say(Message("BYE", welcome.term))
        elif session.held and not session.solo_asked:
            release, again = session.pipeline.resumed(welcome.term, welcome.epoch)
            self._release(release)
            for epoch in again:
                self._say(Message("COMMIT", welcome.term, epoch, session.cuts[epoch]))
            self._run_on()

    def _refused(self, refuse: Message) -> None:
        if refuse.fenced:
            self.fence(refuse.owner, refuse.term)
        elif refuse.renounced:
            self.renounced()
        else:
            self.lost()

    def renounced(self) -> None:
        """The agent cannot take over any more."""
        self._end()
        if self.store.wanted:
            self.store.save(role="solo", armed=False)
        else:
            self.store.save(role="none", armed=False, owner="")
        self._open()

    def _release(self, release: Release | None) -> None:
        vm = self.vm
        if release is None or vm is None or vm.held is None:
            return
        assert self.live.pipeline.term == self.store.term and self.store.role == "protected", "released in an old term"
        going = [state for state, marked in vm.held if marked is not None and marked <= release.epoch]
        vm.held = vm.held[len(going) :]
        for state in going:
            self.world.leave(vm, state)

    def _open(self) -> None:
        """Output flows."""
        if self.vm is None:
            return
        going, self.vm.held, self.vm.running = self.vm.held or [], None, True
        for state, _ in going:
            self.world.leave(self.vm, state)

    def _run_on(self) -> None:
        """Not switched over: the VM goes on here, still protected."""
        self.live.switching = self.live.final_cut = False
        if self.vm is not None:
            self.vm.running = True

    def _say(self, message: Message) -> None:
        connection = self.live.connection
        if connection is not None:
            self.world.send(connection.to_agent, connection, message)

    def _drop(self) -> None:
        if self.live.connection is not None:
            self.live.connection.cut = True
        self.live.connection = None

    def _end(self) -> None:
        self._drop()
        self.session = None
