# SPDX-License-Identifier: Apache-2.0
"""The whole life of one VM on two hosts, under every schedule that hypothesis finds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from ownership_host import Host
from ownership_world import Connection, Died, Message, World

from remusdb.core.pipeline import PrimaryState
from remusdb.core.standby import StandbyState

EXAMPLES = int(os.environ.get("REMUSDB_SCHEDULES", "1500"))
Step = Callable[[], None]


class Run:
    """A schedule: numbers, of which each chooses what happens next."""

    def __init__(self, numbers: list[int], names: str, arbiter: bool) -> None:
        self._dice: Iterator[int] = iter(numbers)
        self.world = World(Host, names, arbiter, self._dice)
        self.world.hosts["a"].vm = self.world.start(0)
        self.connections: list[Connection] = []
        self.quiet = False

    # --- what can happen ---

    def host_steps(self, host: Host) -> list[tuple[str, Step]]:
        """What the host daemon can do now."""
        session, vm, store = host.session, host.vm, host.store
        found: list[tuple[str, Step]] = []
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
            if self.world.arbiter is not None and session.held and (session.solo_asked or not (self.quiet or session.overruled)):
                found.append(("ask_solo", host.ask_solo))
        return found

    def agent_steps(self, host: Host) -> list[tuple[str, Step]]:
        """What the agent can do now."""
        agent, found = host.agent, []
        if agent.core is None:
            return []
        stream = agent.stream
        for connection in agent.greeting:
            found.append(("greet", lambda connection=connection: agent.greet(connection)))
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
        if agent.state is StandbyState.READY and (not self.quiet or self.silent(host)):
            found.append(("take_over", agent.take_over))
        return found

    def silent(self, host: Host) -> bool:
        """Whether the primary of the replica here says nothing for long."""
        return host.agent.stream is None and self.world.hosts[host.peer].vm is None

    def operator(self, host: Host) -> list[tuple[str, Step]]:
        found: list[tuple[str, Step]] = []
        if not host.up:
            return found
        if host.vm is not None and host.store.role != "fenced":
            free = not host.store.armed and host.session is None
            for peer in self.world.hosts:
                if peer != host.name and (free or peer == host.peer):
                    found.append((f"protect to {peer}", lambda peer=peer: host.protect(peer)))
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

    def faults(self, host: Host) -> list[tuple[str, Step]]:
        found: list[tuple[str, Step]] = []
        agent = host.agent
        if not host.up:
            return [("boot", host.boot)]
        found.append(("worker dies", host.worker_dies))
        found.append(("host crashes", host.crash))
        found.append(("agent dies", agent.crash) if agent.core else ("agent starts", agent.start))
        if agent.promoting:
            found.append(("fail to run", agent.fail_to_run))
        session = host.session
        if session is not None and session.connection is not None:
            found += [("cut", lambda: self.cut(session.connection))] * 3
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

    # --- how it goes on ---

    def do(self, host: Host, name: str, step: Step, kind: str = "daemon") -> None:
        self.world.log.append(f"{host.name}: {name}")
        try:
            step()
        except Died:
            self.world.log.append("  died")
            if kind == "agent":
                host.agent.crash()
            else:
                host.worker_dies()
        self.world.check_speakers()

    def fair(self, rounds: int) -> None:
        for _ in range(rounds):
            for host in self.world.hosts.values():
                self.guest(host)
                for kind, steps in (("agent", self.agent_steps), ("host", self.host_steps)):
                    for name, step in steps(host):
                        if name in [other for other, _ in steps(host)]:
                            self.do(host, name, step, kind)

    def run(self) -> None:
        hosts = list(self.world.hosts.values())
        for number in self._dice:
            host = hosts[number % len(hosts)]
            number //= len(hosts)
            kind, number = number % 16, number // 16
            if kind < 9:
                steps = [("agent", *s) for s in self.agent_steps(host)] + [("host", *s) for s in self.host_steps(host)]
                if steps:
                    side, name, step = steps[number % len(steps)]
                    self.do(host, name, step, side)
            elif kind < 11:
                self.guest(host)
            elif kind < 13:
                self.fair(1 + number % 6)
            else:
                steps = self.operator(host) if kind == 13 else self.faults(host)
                if steps:
                    name, step = steps[number % len(steps)]
                    self.do(host, name, step, "operator")
        self.settle()

    def settle(self) -> None:
        """Faults end."""
        world = self.world
        world.log.append("settle")
        world.fuse, world.link_down, self.quiet = None, False, True
        if world.arbiter is not None:
            world.arbiter.trouble.clear()
            while world.arbiter.late:
                self.late()
        for host in world.hosts.values():
            if not host.up:
                host.boot()
            elif host.agent.core is None:
                host.agent.start()
        for _ in range(60):
            self.fair(1)
            if self.well():
                break
            self.help()
        else:
            raise AssertionError("stuck")

    def help(self) -> None:
        hosts = list(self.world.hosts.values())
        if any(host.vm for host in hosts) or any(host.agent.promoting for host in hosts):
            for host in hosts:
                if host.vm is not None and host.store.role != "fenced" and not host.store.wanted:
                    self.do(host, "protect", lambda: host.protect(host.peer or ("b" if host.name == "a" else "a")))
            return
        for host in hosts:
            if host.startable:
                return self.do(host, "start_vm", host.start_vm)
        for host in hosts:
            if host.store.armed and host.store.wanted:
                self.do(host, "unprotect", host.unprotect)

    def well(self) -> bool:
        hosts = list(self.world.hosts.values())
        for host in hosts:
            if host.vm is not None and host.session and host.session.pipeline.state is PrimaryState.PROTECTED:
                others = [other.vm for other in hosts if other is not host and other.vm is not None]
                fenced = not others or (len(hosts) > 2 and all(vm.held is not None for vm in others))
                return fenced and self.world.seen >> max(0, self.world.events - 8) > 0 and host.store.wanted
        return False

    def __str__(self) -> str:
        lines = []
        for host in self.world.hosts.values():
            session = host.session and (host.session.phase, host.session.pipeline.state.value)
            core = host.agent.core
            lines.append(
                f"{host.name}: {host.store} wanted={host.store.wanted} vm={host.vm} image={host.image} {session} "
                f"agent {core and (core.state.value, core.term, core.owner)}"
            )
        if self.world.arbiter:
            lines.append(f"record {self.world.arbiter.record}")
        return "\n".join([*lines, *self.world.log])


def check(numbers: list[int], names: str, arbiter: bool) -> None:
    run = Run(numbers, names, arbiter)
    try:
        run.run()
    except AssertionError as exc:
        raise AssertionError(f"{exc}\n{run}") from exc
