# SPDX-License-Identifier: Apache-2.0
"""The host daemon's side of the protocol in the model: from protect to its end (see ownership_world)."""

from __future__ import annotations

from remusdb.core.ownership import Verdict, go_solo, open_session
from remusdb.errors import BadFrame
from tests.model.ownership_host import Machine, Session
from tests.model.ownership_world import Connection, Message


class Host(Machine):
    """One machine whose host daemon protects the VM; every method is one step."""

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
                if claim.record is not None and claim.record.owner not in ("", self.name):
                    self._knock(claim.record.owner)
                return self._end()
        self.store.save(role="seeding", term=term, owner=self.name, armed=False)
        session.pipeline.begin(term)
        session.phase = "live"
        self.open()

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
            self.store.save(role="solo", term=term + 1, armed=False)
            session.pipeline.solo(term + 1)
            self._end()
            self.open()
        elif claim.verdict is Verdict.LOST:
            self.overruled()
        elif claim.verdict is Verdict.UNKNOWN:
            session.solo_asked = True
            self._drop()

    def overruled(self) -> None:
        """Held, until the peer says what became of it: the record's owner may still fail to run the VM."""
        self.live.overruled, self.live.solo_asked = True, False

    def hear(self, message: Message) -> None:
        """One frame of the session's connection."""
        session, pipeline = self.live, self.live.pipeline
        try:
            if message.kind == "ACK" and session.phase == "live":
                self.release(pipeline.ack(message.term, message.epoch))
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
            self.open()

    # --- what follows from what was heard ---

    def _knock(self, owner: str) -> None:
        """Ask whom the record names: if it does not have the VM, it gives it back then."""
        connection = Connection(self.name, owner)
        self.world.hosts[owner].agent.accept(connection)
        self.world.send(connection.to_agent, connection, Message("ASK", self.store.term))

    def _hello(self, resume: bool) -> None:
        self._connect(Message("HELLO", self.live.pipeline.term, resume=resume, owner=self.name))

    def _ask(self, owner: str) -> None:
        """A third host was named as the owner: does it say so itself?"""
        self.session = Session("ask")
        self.session.pipeline.term = self.store.term
        self._connect(Message("ASK", self.store.term), owner)

    def _connect(self, message: Message, agent: str = "") -> None:
        agent = agent or self.peer
        connection = self.live.connection = Connection(self.name, agent)
        self.world.hellos.append((self.name, agent, message))
        self.world.hosts[agent].agent.accept(connection)
        self.world.send(connection.to_agent, connection, message)

    def _standing(self, standing: Message) -> None:
        """Before anything else after a restart: has somebody taken the VM over?"""
        if standing.term > self.store.term and standing.owner != self.name:
            asked = self.live.connection.agent if self.live.connection is not None else ""
            if standing.owner == asked:  # the host that has it: no other word destroys anything
                return self.fence(standing.owner, standing.term)
            self._end()
            if standing.owner and asked == self.peer:
                self._ask(standing.owner)
            return None
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
            self.release(release)
            for epoch in again:
                self._say(Message("COMMIT", welcome.term, epoch, session.cuts[epoch]))
            self._run_on()

    def _refused(self, refuse: Message) -> None:
        if refuse.fenced and self.store.armed:
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
            self.store.save(role="none", armed=False)
        self.open()

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
