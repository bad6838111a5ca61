# SPDX-License-Identifier: Apache-2.0
"""One host's agent in the model: the sessions that feed its replica (see ownership_world)."""

from __future__ import annotations

from remusdb.core.ownership import Verdict
from remusdb.core.roles import OWNING
from remusdb.core.standby import Phase, Refusal
from remusdb.core.succession import Known, Succession, begins, resumes
from remusdb.errors import BadFrame
from tests.model.ownership_takeover import Replica
from tests.model.ownership_world import Connection, Message


class Agent(Replica):
    """The daemon that holds the replica."""

    # --- the session ---

    def accept(self, connection: Connection) -> None:
        """A daemon that is down accepts nothing."""
        if self.core is None:
            connection.cut = True
        self.greeting.append(connection)
        self._connections.append(connection)

    def greet(self, connection: Connection) -> None:
        """Answer the first frame of a connection."""
        if not connection.to_agent:
            if connection.cut:
                self.greeting.remove(connection)
            return
        message = connection.to_agent.pop(0)
        self.greeting.remove(connection)
        self._refresh()
        self.settle()
        if self.undecided:
            return self.answer(connection, Message("REFUSE", self.standby.term))  # not known yet: ask again
        if message.kind == "ASK":
            store = self.host.store
            owner = self.standby.owner or store.owner
            return self.answer(connection, Message("STANDING", self.standby.term, owner=owner))
        verdict = self._succession(message)
        if verdict is None or verdict in (Succession.UNDECIDED, Succession.STRANGER):
            return self.answer(connection, Message("REFUSE", self.standby.term, owner=self.standby.owner))
        if not message.resume and verdict is not Succession.RUNS_HERE:
            self._supersede(message, verdict)
        answer = self.standby.hello(message.owner, message.term, message.resume)
        if isinstance(answer, Refusal):
            return self._refuse(connection, answer)
        host = self.host
        if host.store.role not in OWNING and not host.put_away_done:  # a VM that is not protected: not to be replaced
            return self.answer(connection, Message("REFUSE", self.standby.term))
        self.drop_stream()
        if not answer.resumed:
            self.standby.renounce()
            self.host.store.save(role="standby", term=answer.term, owner=message.owner, peer=message.owner)
            self.standby.begin(message.owner, answer.term)
            self.standby.up()
            self.replica = 0
        self.stream = connection
        self.answer(connection, Message("WELCOME", answer.term, self.standby.committed, resume=answer.resumed))

    def hear(self, message: Message) -> None:
        """One frame of the session."""
        core, stream = self.standby, self.stream
        assert stream is not None
        if not core.accepts(message.term):
            return self.drop_stream()
        if message.kind == "COMMIT":
            try:
                new = message.epoch > core.committed
                if core.commit(message.term, message.epoch):
                    store = self.host.store
                    assert (store.term, store.role) == (message.term, "standby"), "acknowledged in an old term"
                    self.replica = message.state if new else self.replica
                    self.answer(stream, Message("ACK", message.term, message.epoch))
            except BadFrame:
                self.lost()
        elif message.kind == "BYE":
            self.give_up(forget=True)
        elif message.kind == "TAKEOVER":
            if core.promotable() is not None:
                return self.answer(stream, Message("DECLINE", message.term))
            self.take_over()

    def lost(self) -> None:
        """The connection is gone: a whole replica waits, another one is worth nothing."""
        if self.state is Phase.SEEDING:
            self.give_up()
        self.drop_stream()

    def _refresh(self) -> None:
        """Without a replica, what the host daemon of this machine did meanwhile counts."""
        empty = self.state in (Phase.EMPTY, Phase.PROMOTED)
        if empty and not self.promoting and not self.returning:
            self.start()

    def _succession(self, hello: Message) -> Succession | None:
        """Whether the asking host may be the owner; None while the arbiter does not say."""
        store, arbiter = self.host.store, self.host.world.arbiter
        owns = store.role in OWNING
        ran = owns and store.role != "promoting"
        owner = self.standby.owner or store.owner
        known = Known(self.host.name, self.standby.term, owner, store.peer, owns, ran, store.armed)
        if hello.resume:
            return resumes(known, hello.owner)
        if arbiter is None:
            return begins(known, hello.owner, hello.term, None)
        record = arbiter.look(self.host.name)
        return begins(known, hello.owner, hello.term, record.record) if record.verdict is Verdict.WON else None

    def _supersede(self, hello: Message, verdict: Succession) -> None:
        """This host ran the VM, and its new owner protects it to here: the old one is put away first."""
        store = self.host.store
        unfinished = store.role == "fenced" and not self.host.put_away_done
        if verdict is Succession.PUT_AWAY or unfinished:
            self.host.fence(hello.owner, hello.term)
            self.start()

    def _refuse(self, connection: Connection, answer: Refusal) -> None:
        if self.state in (Phase.EMPTY, Phase.ENDING) and self.host.store.role == "standby":
            self.give_up()
        owner = self.standby.owner if answer.fenced else ""
        refuse = Message("REFUSE", answer.term, fenced=answer.fenced, renounced=answer.renounced, owner=owner)
        self.answer(connection, refuse)
