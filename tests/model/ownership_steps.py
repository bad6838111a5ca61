# SPDX-License-Identifier: Apache-2.0
"""What can happen next in the model: to a host daemon, an agent, by an operator, by a fault (see ownership_world)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from remusdb.core.pipeline import PrimaryState
from remusdb.core.standby import Phase
from tests.model.ownership_session import Host
from tests.model.ownership_world import Connection, Message, World

Step = Callable[[], None]
Choice = tuple[str, Step]


class Steps:
    """A schedule: numbers, of which each chooses what happens next."""

    def __init__(self, numbers: list[int], names: str, arbiter: bool) -> None:
        self._dice: Iterator[int] = iter(numbers)
        self.world = World(Host, names, arbiter, self._dice)
        self.world.hosts["a"].vm = self.world.start(0)
        self.connections: list[Connection] = []
        self.quiet = False  # no more faults
        self.patient = False  # nobody decides anything on silence alone
        self.alone = False  # the other host is gone for good

    # --- what can happen ---

    def host_steps(self, host: Host) -> list[Choice]:
        """What the host daemon can do now."""
        session, vm, store = host.session, host.vm, host.store
        found: list[Choice] = []
        if not host.up:
            return found
        if store.role == "fenced" and (vm is not None or host.image is not None):
            return [("put_away", host.put_away)]
        if session is None:
            if store.armed or (store.wanted and vm is not None and store.role != "fenced"):
                found.append(("take_up", host.take_up))
            return found
        pipeline, connection = session.pipeline, session.connection
        if connection is not None:
            if connection.to_primary:
                found += [("hear", lambda: self.deliver(connection.to_primary, host.hear))] * 2
            elif connection.cut:
                found.append(("lost", host.lost))
        elif session.held and not session.solo_asked:
            found.append(("reconnect", host.reconnect))
        if session.phase == "claim":
            found.append(("claim", host.claim))
        if session.phase == "live" and vm is not None:
            if pipeline.state is PrimaryState.SEEDING and not store.armed:
                found.append(("arm", host.arm))
            if store.armed and pipeline.next_epoch() is not None and not session.final_cut:
                found.append(("cut", host.cut))
            if session.final_cut and pipeline.in_flight == 0 and pipeline.state is PrimaryState.PROTECTED:
                found.append(("hand_over", host.hand_over))
            if not store.wanted and pipeline.state is PrimaryState.PROTECTED:
                found.append(("bye", host.bye))
            if (
                self.world.arbiter is not None
                and session.held
                and (session.solo_asked or (not session.overruled and (self.alone or not self.patient)))
            ):
                found.append(("ask_solo", host.ask_solo))
        return found

    def agent_steps(self, host: Host) -> list[Choice]:
        """What the agent can do now."""
        agent = host.agent
        found: list[Choice] = []
        if agent.core is None:
            return []
        stream = agent.stream
        found += [("greet", partial(agent.greet, connection)) for connection in agent.greeting]
        if stream is not None:
            if stream.to_agent:
                found += [("agent hears", lambda: self.deliver(stream.to_agent, agent.hear))] * 2
            elif stream.cut:
                found.append(("agent lost", agent.lost))
        if agent.deciding:
            found.append(("ask", agent.ask))
        if agent.promoting:
            found.append(("resume", agent.resume))
        if agent.returning:
            found.append(("hand_back", agent.hand_back))
        if agent.state is Phase.READY and (not self.patient or self.silent(host)):
            found.append(("take_over", agent.take_over))
        return found

    def silent(self, host: Host) -> bool:
        """Whether the primary of the replica here says nothing for long."""
        return host.agent.stream is None and self.world.hosts[host.peer].vm is None

    def operator(self, host: Host) -> list[Choice]:
        found: list[Choice] = []
        if not host.up:
            return found
        if host.vm is not None and host.store.role != "fenced":
            free = not host.store.armed and host.session is None
            peers = [peer for peer in self.world.hosts if peer != host.name and (free or peer == host.peer)]
            found += [(f"protect to {peer}", partial(host.protect, peer)) for peer in peers]
            if host.store.wanted:
                found.append(("unprotect", host.unprotect))
        elif host.store.armed:
            found.append(("unprotect", host.unprotect))
        if host.startable:
            found.append(("start_vm", host.start_vm))
        session = host.session
        if session is not None and session.pipeline.state is PrimaryState.PROTECTED and not session.switching:
            found.append(("switchover", host.switchover))
        return found

    def faults(self, host: Host) -> list[Choice]:
        found: list[Choice] = []
        agent = host.agent
        if not host.up:
            return [("boot", host.boot)]
        found.append(("worker dies", host.worker_dies))
        if host.vm is not None:
            found.append(("VM dies", host.vm_dies))
        found.append(("host crashes", host.crash))
        found.append(("agent dies", agent.crash) if agent.core else ("agent starts", agent.start))
        if agent.replica_there:
            found.append(("replica breaks", agent.breaks))
        if agent.promoting:
            found.append(("fail to run", agent.fail_to_run))
        session = host.session
        connection = session.connection if session is not None else None
        if connection is not None:
            found += [("cut", partial(self.cut, connection))] * 3
        if self.world.hellos:
            found += [("an old HELLO comes", self.old_hello)] * 2
        found.append(("link", self.link))
        found.append(("fuse", lambda: setattr(self.world, "fuse", self.world.dice(5))))
        arbiter = self.world.arbiter
        if arbiter is not None:
            kinds = ("", "down", "lossy", "lossy")
            found += [("trouble", lambda: arbiter.trouble.update({host.name: kinds[self.world.dice(4)]}))] * 2
            if arbiter.late:
                found += [("late", lambda: self.late())] * 2
        return found

    def late(self) -> None:
        arbiter = self.world.arbiter
        assert arbiter is not None
        arbiter.apply(*arbiter.late.pop(self.world.dice(len(arbiter.late))))

    def cut(self, connection: Connection) -> None:
        """Some of what is under way is lost."""
        connection.cut = True
        for queue in (connection.to_agent, connection.to_primary):
            del queue[self.world.dice(4) :]

    def old_hello(self) -> None:
        """Of any time before, with nobody behind it any more."""
        hellos = self.world.hellos
        primary, agent, message = hellos[-1 - self.world.dice(len(hellos))]
        self.world.hosts[agent].agent.accept(Connection(primary, agent, [message], cut=True))

    def link(self) -> None:
        self.world.link_down = not self.world.link_down

    def deliver(self, queue: list[Message], to: Callable[[Message], None]) -> None:
        """The next message; in bad times another one first, or not for the last time."""
        if not queue:
            return None  # an earlier step of this round emptied it
        fate = 9 if self.quiet else self.world.dice(10)
        if fate == 0:
            return to(queue.pop(self.world.dice(len(queue))))
        to(queue[0] if fate == 1 else queue.pop(0))

    def guest(self, host: Host) -> None:
        """The VM executes an event, and says it."""
        vm = host.vm
        if vm is None or not vm.running:
            return
        vm.state |= 1 << self.world.events
        self.world.events += 1
        if vm.held is None:
            self.world.leave(vm, vm.state)
        else:
            vm.held.append((vm.state, None))
