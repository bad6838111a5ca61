# SPDX-License-Identifier: Apache-2.0
"""A replica in the model, and how it becomes the VM (see ownership_world)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remusdb.core.ownership import Verdict, give_back, take_over
from remusdb.core.roles import OWNING
from remusdb.core.standby import Phase, Standby
from tests.model.ownership_world import Connection, Message

if TYPE_CHECKING:
    from tests.model.ownership_host import Machine


class Replica:
    """`None` in `core`: the daemon is down."""

    def __init__(self, host: Machine) -> None:
        self.host = host
        self.core: Standby | None = None
        self.greeting: list[Connection] = []  # their first frames are read in any order
        self._connections: list[Connection] = []  # all of this process
        self.stream: Connection | None = None
        self.replica = 0
        self.asked = False  # the arbiter may have said yes
        self.broken = False  # found torn while the arbiter was asked
        self.promoting = self.returning = False  # decided; it cannot be run here
        self.start()

    @property
    def standby(self) -> Standby:
        assert self.core is not None
        return self.core

    @property
    def state(self) -> Phase | None:
        return self.core.phase if self.core else None

    @property
    def replica_there(self) -> bool:
        return self.promoting or self.state in (Phase.SEEDING, Phase.READY, Phase.DECIDING)

    @property
    def undecided(self) -> bool:
        """Whether it took over, and does not know yet that the VM can be run here."""
        return self.promoting or self.returning

    @property
    def deciding(self) -> bool:
        return self.state is Phase.DECIDING

    def start(self) -> None:
        store = self.host.store
        self.core = Standby(store.term, Phase.PROMOTED if store.role in OWNING else Phase.EMPTY, store.owner)
        self.returning = store.role == "promoting"  # it never ran here, and its replica is gone

    def crash(self) -> None:
        """The daemon dies, and with it a replica: not a VM that runs."""
        for connection in self._connections:
            connection.cut = True
        self.core = self.stream = None
        self.greeting, self._connections = [], []
        self.asked = self.broken = self.promoting = self.returning = False

    # --- takeover ---

    def take_over(self) -> None:
        """Silence, a switchover, or an operator."""
        if self.state is not Phase.READY:
            return
        if self.host.world.arbiter is None:
            return self._become()
        self.standby.decide()

    def ask(self) -> None:
        """The arbiter's answer to: may this host take over?"""
        core, arbiter = self.standby, self.host.world.arbiter
        assert arbiter is not None
        claim = arbiter.claim(self.host.name, take_over(self.host.name, core.owner, core.term))
        if claim.verdict is Verdict.WON:
            self._become()
            if self.broken:
                self.fail_to_run()
        elif claim.verdict is Verdict.LOST:
            self.give_up()
        elif claim.verdict is Verdict.UNKNOWN:
            self.asked = True
        elif not self.asked and self.broken:
            self.give_up()
        elif not self.asked:
            core.stay()
            if self.stream is not None:
                self.answer(self.stream, Message("DECLINE", core.term))

    def resume(self) -> None:
        """The replica can be run: from the moment in which that is durable, it is the VM."""
        host = self.host
        host.image = self.replica
        host.store.save(role="promoted")
        self.standby.runs()
        self.promoting = False
        host.start_vm()

    def breaks(self) -> None:
        """The replica is torn. While the arbiter is being asked that is nobody's business: its answer may be yes."""
        if self.deciding:
            self.broken = True
        elif self.promoting:
            self.fail_to_run()
        else:
            self.give_up()

    def fail_to_run(self) -> None:
        self.returning, self.promoting = True, False

    def hand_back(self) -> None:
        """The old owner may have the VM again."""
        core, host = self.standby, self.host
        if host.world.arbiter is not None:
            verdict = host.world.arbiter.claim(host.name, give_back(host.name, host.store.peer, core.term)).verdict
            if verdict in (Verdict.UNREACHED, Verdict.UNKNOWN):
                return
        host.image = None
        host.store.save(role="none", owner=host.store.peer)
        core.give_back(host.store.peer)
        core.gone()
        self.returning = self.broken = False

    def settle(self) -> None:
        """Without a replica, a claim of a daemon that died since is void, whenever the arbiter heard of it."""
        host, arbiter = self.host, self.host.world.arbiter
        if arbiter is None or self.state is not Phase.EMPTY or not host.put_away_done:
            return
        record = arbiter.look(host.name).record
        if record is not None and record.owner == host.name:
            host.store.save(term=max(host.store.term, record.term))
            self.standby.term = host.store.term
            arbiter.claim(host.name, give_back(host.name, host.store.owner, record.term))

    # --- the rest ---

    def _become(self) -> None:
        core, host = self.standby, self.host
        self.asked = False
        host.store.save(role="promoting", term=core.term + 1, owner=host.name)
        core.promote(host.store.term)
        core.owner = host.name
        self.promoting = True
        self.drop_stream()

    def give_up(self, *, forget: bool = False) -> None:
        """Durable before the primary is told. `forget`: by its will, so whoever protects the VM to here next may."""
        self.standby.renounce()
        self.standby.gone()
        self.asked = self.broken = False
        self.host.store.save(role="none", **({"owner": "", "peer": ""} if forget else {}))
        if forget:
            self.standby.owner = ""
        if self.stream is not None:
            self.answer(self.stream, Message("RENOUNCE", self.standby.term))
        self.drop_stream()

    def answer(self, connection: Connection, message: Message) -> None:
        self.host.world.send(connection.to_primary, connection, message)

    def drop_stream(self) -> None:
        if self.stream is not None:
            self.stream.cut = True
        self.stream = None
