# SPDX-License-Identifier: Apache-2.0
"""One schedule of the model, until faults end and the VM is protected again (see ownership_world)."""

from __future__ import annotations

from functools import partial

from remusdb.core.pipeline import PrimaryState
from remusdb.core.standby import Phase
from tests.model.ownership_session import Host
from tests.model.ownership_steps import Choice, Step, Steps
from tests.model.ownership_world import Died

OPERATOR, EVERYBODY, KINDS = 13, 11, 16


def _number(names: str, kind: int, choice: int = 0) -> int:
    """The number that has the first host do this, see `Run.run`."""
    return (choice * KINDS + kind) * len(names)


class Run(Steps):
    """A schedule: numbers, of which each chooses what happens next."""

    @staticmethod
    def protected(names: str, rounds: int) -> list[int]:
        """The numbers that protect the VM of the first host, and let everybody work for a while."""
        return [_number(names, OPERATOR), *[_number(names, EVERYBODY, 5)] * rounds]

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
        """Everybody does what there is to do, in turns: so schedules reach the states where faults matter."""
        self.patient = True
        for _ in range(rounds):
            for host in self.world.hosts.values():
                self.guest(host)
                for kind, steps in (("agent", self.agent_steps), ("host", self.host_steps)):
                    for name, step in steps(host):
                        if name in [other for other, _ in steps(host)]:
                            self.do(host, name, step, kind)
        self.patient = False

    def run(self) -> None:
        hosts = list(self.world.hosts.values())
        for number in self._dice:
            host = hosts[number % len(hosts)]
            number //= len(hosts)
            kind, number = number % KINDS, number // KINDS
            if kind < 9:
                agent, daemon = self.agent_steps(host), self.host_steps(host)
                if agent or daemon:
                    number %= len(agent) + len(daemon)
                    self.choose(host, agent + daemon, number, "agent" if number < len(agent) else "daemon")
            elif kind < EVERYBODY:
                self.guest(host)
            elif kind < OPERATOR:
                self.fair(1 + number % 6)
            else:
                self.choose(host, self.operator(host) if kind == OPERATOR else self.faults(host), number)
        self.settle()

    def choose(self, host: Host, steps: list[Choice], number: int, kind: str = "daemon") -> None:
        if steps:
            name, step = steps[number % len(steps)]
            self.do(host, name, step, kind)

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
        """What an operator does who reads `status`."""
        hosts = list(self.world.hosts.values())
        if any(host.vm for host in hosts) or any(host.agent.promoting for host in hosts):
            for host in hosts:
                if host.vm is not None and host.store.role != "fenced" and not host.store.wanted:
                    peer = host.peer or next(name for name in self.world.hosts if name != host.name)
                    self.do(host, "protect", partial(host.protect, peer))
            return
        for host in hosts:
            if host.startable:
                return self.do(host, "start_vm", host.start_vm)
        for host in hosts:
            if host.store.armed and host.store.wanted:
                self.do(host, "unprotect", host.unprotect)

    def primary(self) -> Host | None:
        """The host whose VM is protected, by a backup that could take it over, and is heard."""
        for host in self.world.hosts.values():
            session = host.session
            if host.vm is self.world.newest and session and session.pipeline.state is PrimaryState.PROTECTED:
                agent = self.world.hosts[host.peer].agent
                follows = agent.state is Phase.READY and agent.stream is session.connection
                return host if follows and self.heard() and host.store.wanted and not session.switching else None
        return None

    def heard(self) -> bool:
        """Whether what the VM said lately has left: all but a few epochs that are in flight."""
        return self.world.seen.bit_length() > self.world.events - 8

    def well(self) -> bool:
        """One VM is protected and heard; others are gone, or silent where a third host may own the VM."""
        primary, hosts = self.primary(), self.world.hosts.values()
        others = [host.vm for host in hosts if host is not primary and host.vm is not None]
        return primary is not None and (not others or (len(hosts) > 2 and all(vm.held is not None for vm in others)))

    def fail_once(self, primary_dies: bool) -> None:
        """Whatever was before: from protected, the VM outlives the end of one host, without an operator.

        Only a primary without an arbiter stays silent when its backup dies: nobody can know who else speaks.
        """
        primary = self.primary()
        assert primary is not None
        backup = self.world.hosts[primary.peer]
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
            session = host.session and (host.session.phase, host.session.pipeline.state.value)
            core = host.agent.core
            lines.append(
                f"{host.name}: {host.store} wanted={host.store.wanted} vm={host.vm} image={host.image} {session} "
                f"agent {core and (core.phase.value, core.term, core.owner)}"
            )
        if self.world.arbiter:
            lines.append(f"record {self.world.arbiter.record}")
        return "\n".join([*lines, *self.world.log])
