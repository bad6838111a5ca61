# SPDX-License-Identifier: Apache-2.0
"""One schedule of the model: numbers, of which each chooses what happens next, until faults end and the VM is protected
again; then one host dies for good (see world)."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from remusdb.core.pipeline import PrimaryState
from remusdb.core.standby import Phase
from remusdb.errors import RemusError
from tests.model.hosts import Host
from tests.model.world import Connection, Died, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.model.primary_host import Step

EVERYBODY, OPERATOR, FAULT, KINDS = 11, 13, 14, 16
SCHEDULES = int(os.environ.get("REMUSDB_SCHEDULES", "50"))  # that each case tries; `make test` says 800


def number(names: str, kind: int, choice: int = 0) -> int:
    """The number that has the first host do this, see `Run.run`."""
    return (choice * KINDS + kind) * len(names)


def protected(names: str, rounds: int) -> list[int]:
    """The numbers that protect the VM of the first host, and let everybody work for a while."""
    return [number(names, OPERATOR), *[number(names, EVERYBODY, 5)] * rounds]


class Run:
    """One schedule."""

    def __init__(self, numbers: list[int], names: str, arbiter: bool) -> None:
        self._dice: Iterator[int] = iter(numbers)
        self.world = World(Host, names, arbiter, self._dice)
        first = self.world.hosts[names[0]]
        first.vm = self.world.start(0)
        self.patient = False  # nobody decides anything on silence alone
        self.alone = False  # the other host is gone for good

    # --- what can happen ---

    def host_steps(self, host: Host) -> list[Step]:
        return host.steps()

    def agent_steps(self, host: Host) -> list[Step]:
        found = host.agent.steps()
        if host.agent.phase in (Phase.READY, Phase.SEEDING) and (not self.patient or self.silent(host)):
            found.append(("silence", host.agent.silence))
        return found

    def silent(self, host: Host) -> bool:
        """Whether the primary of the replica here says nothing for long."""
        line, core = host.agent.line, host.agent.core
        if line is not None and not host.agent.connections[line].cut:
            return False
        if core is None or core.now.standby.owner not in self.world.hosts:
            return False
        owner = self.world.hosts[core.now.standby.owner]
        worker = owner.worker
        another = worker is None or worker.core.pipeline.term != core.now.session_term
        return self.alone or owner.vm is None or (core.phase is Phase.SEEDING and another)

    def faults(self, host: Host) -> list[Step]:
        world, agent = self.world, host.agent
        if not host.up:
            return [("boot", host.boot)]
        found: list[Step] = [("worker dies", host.worker_dies), ("host crashes", host.crash)]
        found.append(("agent dies", agent.die) if agent.alive else ("agent starts", agent.start))
        if host.vm is not None:
            found.append(("VM dies", host.vm_dies))
            found.append(("VM is shut down", partial(host.vm_dies, wanted=True)))
        if agent.replica is not None:
            found.append(("replica breaks", agent.breaks))
            found.append(("takeover fails", agent.fails))
        if host.worker is not None:
            found += [("gives the copy up", host.worker.give_up_copy)] * (host.worker.stage == "copy")
            found += [("time is over", step) for _, step in host.late_steps()]
        found += [("cut", partial(self.cut, connection)) for connection in agent.connections.values()] * 3
        if world.hellos:
            found += [("an old HELLO comes", self.old_hello)] * 2
        found.append(("link", self.link))
        found.append(("fuse", lambda: setattr(world, "fuse", world.dice(5))))
        if world.arbiter is not None:
            kinds, arbiter = ("", "down", "lossy", "lossy"), world.arbiter
            found += [("trouble", lambda: arbiter.trouble.update({host.name: kinds[world.dice(4)]}))] * 2
            if arbiter.late:
                found += [("late", self.late)] * 2
        return found

    def late(self) -> None:
        arbiter = self.world.arbiter
        assert arbiter is not None
        arbiter.apply(*arbiter.late.pop(self.world.dice(len(arbiter.late))))

    def cut(self, connection: Connection) -> None:
        """Some of what is under way is lost."""
        connection.cut = True
        for queue in (connection.to_agent, connection.to_primary):
            for _ in range(len(queue) - self.world.dice(6)):
                queue.pop()

    def old_hello(self) -> None:
        """Of any time before, with nobody behind it any more."""
        hellos = self.world.hellos
        primary, agent, hello = hellos[-1 - self.world.dice(len(hellos))]
        if self.world.hosts[agent].agent.alive and not self.world.link_down:
            self.world.connect(primary, agent, hello).cut = True
            hellos.pop()

    def link(self) -> None:
        self.world.link_down = not self.world.link_down
        if self.world.link_down:
            for host in self.world.hosts.values():
                for connection in host.agent.connections.values():
                    connection.cut = True

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

    def do(self, host: Host, name: str, step: Callable[[], object], kind: str = "host") -> None:
        self.world.log.append(f"{host.name}: {name}")
        try:
            step()
        except Died:
            self.world.log.append("  died")
            if kind == "agent":
                host.agent.die()
            else:
                host.worker_dies()
        self.world.check_speakers()

    def fair(self, rounds: int) -> None:
        """Everybody does what there is to do, in turns: so schedules reach the states where faults matter."""
        self.patient = True
        for _ in range(rounds):
            for host in self.world.hosts.values():
                self.guest(host)
                for kind, steps in (("agent", self.agent_steps), ("host", self.host_steps)):
                    for name, step in steps(host):
                        if name in [other for other, _ in steps(host)]:
                            self.do(host, name, step, kind)
                if not host.steps() or not self.moving(host):
                    for name, step in host.late_steps():
                        if self.alone or not name.startswith("solo"):
                            self.do(host, name, step)
        self.patient = False

    def moving(self, host: Host) -> bool:
        """Whether anything but epochs goes on at its worker."""
        worker = host.worker
        connection = worker.connection if worker is not None else None
        return connection is not None and bool(connection.to_primary or connection.to_agent) and not connection.cut

    def run(self) -> None:
        hosts = list(self.world.hosts.values())
        for choice in self._dice:
            host = hosts[choice % len(hosts)]
            kind, left = choice // len(hosts) % KINDS, choice // len(hosts) // KINDS
            if kind < 9:
                agent, daemon = self.agent_steps(host), self.host_steps(host)
                if agent or daemon:
                    left %= len(agent) + len(daemon)
                    self.choose(host, agent + daemon, left, "agent" if left < len(agent) else "host")
            elif kind < EVERYBODY:
                self.guest(host)
            elif kind < OPERATOR:
                self.fair(1 + left % 6)
            else:
                self.choose(host, host.operator() if kind == OPERATOR else self.faults(host), left)
        self.settle()

    def choose(self, host: Host, steps: list[Step], left: int, kind: str = "host") -> None:
        if steps:
            name, step = steps[left % len(steps)]
            dies = "agent" if "agent" in name or "replica" in name or "takeover" in name else kind
            self.do(host, name, step, dies)

    def settle(self) -> None:
        """Faults end."""
        world = self.world
        world.log.append("settle")
        world.fuse, world.link_down = None, False
        if world.arbiter is not None:
            world.arbiter.trouble.clear()
            while world.arbiter.late:
                self.late()
        for host in world.hosts.values():
            if not host.up:
                host.boot()
            elif not host.agent.alive:
                host.agent.start()
        for rounds in range(80):
            self.fair(1)
            if self.well():
                break
            if rounds % 4 == 3:
                self.help()
        else:
            raise AssertionError("stuck")

    def help(self) -> None:
        """What an operator does who reads `status`."""
        hosts = list(self.world.hosts.values())
        deciding = any(host.agent.phase in (Phase.DECIDING, Phase.PROMOTING) for host in hosts)
        running = [host for host in hosts if host.vm is not None]
        for host in running:
            state = host.store.state
            if host.worker is None and state.role in ("none", "solo", "promoted") and not self.refused(host):
                peer = state.peer or next(name for name in self.world.hosts if name != host.name)
                return self.do(host, "protect", partial(host.protect, peer))
        if running or deciding:
            return None
        for host in hosts:
            if host.startable:
                return self.do(host, "start the VM", host.start_vm)
        for host in hosts:
            if host.store.state.armed and host.worker is None:
                return self.do(host, "unprotect", partial(host.unprotect, peer_is_dead=True))
        return None

    def refused(self, host: Host) -> bool:
        """Whether the peer knows another owner, who has the VM no more: an operator has it forgotten there."""
        peer = host.store.state.peer or next(name for name in self.world.hosts if name != host.name)
        other = self.world.hosts[peer]
        state = other.store.state
        stale = other.vm is None and other.agent.phase is Phase.EMPTY and state.owner not in ("", host.name)
        if stale and host.vm is self.world.newest and self.world.arbiter is None:
            self.do(other, "forget", other.forget)
        return False

    def primary(self) -> Host | None:
        """The host whose VM is protected, by a backup that could take it over, and is heard."""
        for host in self.world.hosts.values():
            worker = host.worker
            if worker is None or host.vm is not self.world.newest or worker.core.phase is not PrimaryState.PROTECTED:
                continue
            agent = self.world.hosts[worker.peer].agent
            connection = worker.connection
            follows = agent.phase is Phase.READY and connection is not None and agent.line == connection.line
            return host if follows and self.heard() and worker.core.is_protected and not worker.core.switching else None
        return None

    def heard(self) -> bool:
        """Whether what the VM said lately has left: all but a few epochs that are in flight."""
        return self.world.seen.bit_length() > self.world.events - 8

    def well(self) -> bool:
        """One VM is protected and heard; others are gone, or silent where a third host may own the VM."""
        primary, hosts = self.primary(), self.world.hosts.values()
        if not all(host.agent.at_rest for host in hosts):
            return False
        others = [host.vm for host in hosts if host is not primary and host.vm is not None]
        return primary is not None and (not others or (len(hosts) > 2 and all(vm.held is not None for vm in others)))

    def fail_once(self, *, primary_dies: bool) -> None:
        """Whatever was before: from protected, the VM outlives the end of one host, without an operator.

        Only a primary without an arbiter stays silent when its backup dies: nobody can know who else speaks.
        """
        primary = self.primary()
        assert primary is not None
        assert primary.worker is not None
        backup = self.world.hosts[primary.worker.peer]
        victim, heir = (primary, backup) if primary_dies else (backup, primary)
        self.world.log.append(f"{victim.name}: is gone for good")
        victim.crash()
        self.alone, before = True, self.world.events
        self.fair(30)
        free = heir.vm is not None and heir.vm is self.world.newest and heir.vm.held is None
        assert free == (primary_dies or self.world.arbiter is not None), "stuck: the other host does not go on"
        assert not free or (self.heard() and self.world.events > before), "stuck: nothing is heard"

    def __str__(self) -> str:
        lines = []
        for host in self.world.hosts.values():
            worker = host.worker and (host.worker.stage, host.worker.core.phase.value)
            core = host.agent.core
            backup = core and (core.phase.value, core.now.standby.term, core.now.standby.owner)
            lines.append(f"{host.name}: {host.store} vm={host.vm} image={host.image} {worker} agent {backup}")
        if self.world.arbiter:
            lines.append(f"record {self.world.arbiter.record}")
        return "\n".join([*lines, *self.world.log[-400:]])


def check(numbers: list[int], names: str, arbiter: bool) -> Run:
    """One schedule; then one more failure."""
    run = Run(numbers, names, arbiter)
    try:
        run.run()
        run.fail_once(primary_dies=len(numbers) % 2 == 0)
    except (AssertionError, RemusError) as exc:
        raise AssertionError(f"{exc}\n{run}") from exc
    return run
