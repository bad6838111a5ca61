# SPDX-License-Identifier: Apache-2.0
"""One host's agent in the model: the standby of the other host's VM, and the takeover (see ownership_world)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ownership_world import Connection, Message, following

from remusdb.core.ownership import Verdict, give_back, take_over
from remusdb.core.standby import Refusal, Standby, StandbyState
from remusdb.errors import BadFrame
from remusdb.state import OWNING

if TYPE_CHECKING:
    from ownership_host import Host


class Agent:
    """`None` in `core`: the daemon is down."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.core: Standby | None = None
        self.greeting: list[Connection] = []  # their first frames are read in any order
        self._connections: list[Connection] = []  # all of this process
        self.stream: Connection | None = None
        self.replica = 0
        self.asked = False  # the arbiter may have said yes
        self.promoting = self.returning = False  # decided; it cannot be run here
        self.start()

    @property
    def standby(self) -> Standby:
        assert self.core is not None
        return self.core

    @property
    def state(self) -> StandbyState | None:
        return self.core.state if self.core else None

    @property
    def deciding(self) -> bool:
        return self.state is StandbyState.DECIDING

    def start(self) -> None:
        store = self._host.store
        self.core = Standby(store.term, store.role in OWNING, store.owner)
        self.returning = store.role == "promoting"  # it never ran here, and its replica is gone

    def crash(self) -> None:
        """The daemon dies, and with it a replica: not a VM that runs."""
        for connection in self._connections:
            connection.cut = True
        self.core = self.stream = None
        self.greeting, self._connections = [], []
        self.asked = self.promoting = self.returning = False

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
        self._settle(connection.primary)
        if self.promoting or self.returning:
            return self._answer(connection, Message("REFUSE", self.standby.term))  # not known yet: ask again
        if message.kind == "ASK":
            store = self._host.store
            owner = self.standby.owner or store.owner
            return self._answer(connection, Message("STANDING", self.standby.term, owner=owner))
        self._supersede(message)
        host = self._host
        if host.store.role not in OWNING and not host.put_away_done:  # a VM that is not protected: not to be replaced
            return self._answer(connection, Message("REFUSE", self.standby.term))
        answer = self.standby.hello(message.owner, message.term, message.resume)
        if isinstance(answer, Refusal):
            return self._refuse(connection, answer)
        self._drop_stream()
        if not answer.resumed:
            self.standby.renounce()
            self._host.store.save(role="standby", term=answer.term, owner=message.owner, peer=message.owner)
            self.standby.begin(message.owner, answer.term)
            self.replica = 0
        self.stream = connection
        self._answer(connection, Message("WELCOME", answer.term, self.standby.committed, resume=answer.resumed))

    def hear(self, message: Message) -> None:
        """One frame of the session."""
        core, stream = self.standby, self.stream
        assert stream is not None
        if not core.accepts(message.term):
            return self._drop_stream()
        if message.kind == "COMMIT":
            try:
                new = message.epoch > core.committed
                if core.commit(message.term, message.epoch):
                    store = self._host.store
                    assert (store.term, store.role) == (message.term, "standby"), "acknowledged in an old term"
                    self.replica = message.state if new else self.replica
                    self._answer(stream, Message("ACK", message.term, message.epoch))
            except BadFrame:
                self.lost()
        elif message.kind == "BYE":
            self._give_up("")
        elif message.kind == "TAKEOVER":
            if core.promotable() is not None:
                return self._answer(stream, Message("DECLINE", message.term))
            self.take_over()

    def lost(self) -> None:
        """The connection is gone: a whole replica waits, another one is worth nothing."""
        if self.state is StandbyState.SEEDING:
            self._give_up()
        self._drop_stream()

    # --- takeover ---

    def take_over(self) -> None:
        """Silence, a switchover, or an operator."""
        if self.state is not StandbyState.READY:
            return
        if self._host.world.arbiter is None:
            return self._become()
        self.standby.decide()

    def ask(self) -> None:
        """The arbiter's answer to: may this host take over?"""
        core, arbiter = self.standby, self._host.world.arbiter
        assert arbiter is not None
        claim = arbiter.claim(self._host.name, take_over(self._host.name, core.owner, core.term))
        if claim.verdict is Verdict.WON:
            self._become()
        elif claim.verdict is Verdict.LOST:
            self._give_up()
        elif claim.verdict is Verdict.UNKNOWN:
            self.asked = True
        elif not self.asked:
            core.stay()
            if self.stream is not None:
                self._answer(self.stream, Message("DECLINE", core.term))

    def resume(self) -> None:
        """The replica can be run: from the moment in which that is durable, it is the VM."""
        host = self._host
        host.image = self.replica
        host.store.save(role="promoted")
        self.promoting = False
        host.start_vm()

    def fail_to_run(self) -> None:
        self.returning, self.promoting = True, False

    def hand_back(self) -> None:
        """The old owner may have the VM again."""
        core, host = self.standby, self._host
        if host.world.arbiter is not None:
            verdict = host.world.arbiter.claim(host.name, give_back(host.name, host.store.peer, core.term)).verdict
            if verdict in (Verdict.UNREACHED, Verdict.UNKNOWN):
                return
        host.image = None
        host.store.save(role="none", owner=host.store.peer)
        core.give_back(host.store.peer)
        self.returning = False

    # --- the rest ---

    def _become(self) -> None:
        core, host = self.standby, self._host
        self.asked = False
        host.store.save(role="promoting", term=following(core.term), owner=host.name)
        core.promote(host.store.term)
        core.owner = host.name
        self.promoting = True
        self._drop_stream()

    def _refresh(self) -> None:
        """Without a replica, what the host daemon of this machine did meanwhile counts."""
        empty = self.state in (StandbyState.EMPTY, StandbyState.PROMOTED)
        if empty and not self.promoting and not self.returning:
            self.start()

    def _settle(self, primary: str) -> None:
        """The arbiter may have heard, or hear late, a claim of a daemon that died since: without a replica it is void."""
        host, arbiter = self._host, self._host.world.arbiter
        if arbiter is None or self.state is not StandbyState.EMPTY or not host.put_away_done:
            return
        record = arbiter.look(host.name).record
        if record is not None and record.owner == host.name:
            host.store.save(term=max(host.store.term, record.term))
            self.standby.term = host.store.term
            arbiter.claim(host.name, give_back(host.name, primary, record.term))

    def _supersede(self, hello: Message) -> None:
        """This host ran the VM, and a host with a newer term protects it to here: the old one is put away first."""
        store = self._host.store
        unfinished = store.role == "fenced" and not self._host.put_away_done
        superseded = store.role in OWNING and hello.term > store.term
        if not hello.resume and (superseded or unfinished):
            self._host.fence()
            self.start()

    def _refuse(self, connection: Connection, answer: Refusal) -> None:
        if self.state is StandbyState.EMPTY and self._host.store.role == "standby":
            self._give_up()
        owner = self.standby.owner if answer.fenced else ""
        refuse = Message("REFUSE", answer.term, fenced=answer.fenced, renounced=answer.renounced, owner=owner)
        self._answer(connection, refuse)

    def _give_up(self, owner: str | None = None) -> None:
        """Durable before the primary is told."""
        self.standby.renounce()
        self.asked = False
        self._host.store.save(role="none", **({} if owner is None else {"owner": owner}))
        if owner is not None:
            self.standby.owner = owner
        if self.stream is not None:
            self._answer(self.stream, Message("RENOUNCE", self.standby.term))
        self._drop_stream()

    def _answer(self, connection: Connection, message: Message) -> None:
        self._host.world.send(connection.to_primary, connection, message)

    def _drop_stream(self) -> None:
        if self.stream is not None:
            self.stream.cut = True
        self.stream = None
