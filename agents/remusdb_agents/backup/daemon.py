# SPDX-License-Identifier: Apache-2.0
"""The backup host's agent: listens for primaries, keeps their replicas, answers its control socket."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from typing import TYPE_CHECKING

from remusdb.arbiter.arbiter import Arbiter
from remusdb.config import AgentConfig
from remusdb.control import ControlServer, ProgressFn
from remusdb.control.api import (
    AgentStatus,
    AgentVms,
    Export,
    Exported,
    Failover,
    Forget,
    Forgotten,
    PastOf,
    Rehearse,
    Rehearsed,
    TakenOver,
    console_may,
)
from remusdb.control.notify import notify
from remusdb.history import History, VmEvents, newest
from remusdb.hooks import Hooks
from remusdb.reasons import Code, Reason
from remusdb.state import StateStore
from remusdb.transport.listener import Listener
from remusdb.transport.tls import server_context
from remusdb_agents.backup.admission import MIB, Admission
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.ears import listen
from remusdb_agents.backup.guests import Guests
from remusdb_agents.backup.registry import Registry
from remusdb_agents.backup.rehearsal.copy import sweep
from remusdb_agents.backup.sessions import Sessions
from remusdb_agents.backup.standby.machine import StandbyMachine
from remusdb_agents.backup.ticker import Ticker

if TYPE_CHECKING:
    from remusdb_agents.backup.context import MakeMachine

log = logging.getLogger(__name__)

FLUSH_S = 2.0


class AgentDaemon:
    """All replicas of this host."""

    def __init__(self, config: AgentConfig, machine: MakeMachine = StandbyMachine) -> None:
        """`machine`: what makes a standby."""
        self._config = config
        agent = config.agent
        self._ears = listen(agent.listen, agent.port) if config.failover.datagrams else None
        self._context = Context(
            config,
            StateStore(agent.state_dir),
            History(agent.state_dir, Hooks(agent.hooks_dir)),
            Arbiter(config.arbiter) if config.arbiter else None,
            Admission(config.limits.memory_max_mib * MIB),
            machine,
            self._ears,
        )
        self._registry = Registry(self._context)
        self._sessions = Sessions(self._context, self._registry)
        self._ticker = Ticker(self._registry.live)
        self._stop = threading.Event()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self._stop.set())
        tls, agent = self._config.tls, self._config.agent
        context = server_context(tls.ca, tls.cert, tls.key)
        sweep(self._config)
        self._registry.recover()
        self._ticker.start()
        with contextlib.ExitStack() as stack:
            control = ControlServer(
                agent.run_dir / "agent.sock",
                {
                    AgentStatus: self._status,
                    Failover: self._failover,
                    Rehearse: self._rehearse,
                    Export: self._export,
                    Forget: self._forget,
                    PastOf: self._past,
                },
                group=agent.console_group,
                group_may=console_may,
            )
            control.start()
            stack.callback(control.close)
            listener = Listener(agent.listen, agent.port, context)
            guests = Guests(self._sessions.serve, self._registry.live)
            listener.start(guests.serve)
            stack.callback(listener.close)
            if self._ears is not None:
                stack.callback(self._ears.close)
            log.info("agent %s listens on %s:%d", agent.name, agent.listen, agent.port)
            if not self._config.primaries:
                log.warning("no host may keep standbys here: agent.toml has no [primaries.HOST]")
            notify("READY=1")
            self._stop.wait()
            for replica in self._registry.live():
                replica.close()
            self._ticker.stop()
            self._context.history.flush(FLUSH_S)

    def _status(self, asked: AgentStatus, _progress: ProgressFn) -> AgentVms:
        return AgentVms(vms=self._registry.status(asked.vm))

    def _failover(self, asked: Failover, _progress: ProgressFn) -> TakenOver:
        with self._registry.known(asked.vm) as replica:
            why = Reason.of(Code.FAILOVER_ASKED)
            return replica.promote(why, word=asked.primary_is_dead, by="operator")

    def _rehearse(self, asked: Rehearse, progress: ProgressFn) -> Rehearsed:
        with self._registry.known(asked.vm) as replica:
            return replica.rehearse(asked.tcp_port, asked.seconds, progress)

    def _export(self, asked: Export, progress: ProgressFn) -> Exported:
        with self._registry.known(asked.vm) as replica:
            return replica.export(asked, progress)

    def _forget(self, asked: Forget, _progress: ProgressFn) -> Forgotten:
        with self._registry.known(asked.vm) as replica:
            return replica.forget(lose_replica=asked.lose_replica)

    def _past(self, asked: PastOf, _progress: ProgressFn) -> VmEvents:
        return newest(self._config.agent.state_dir, asked.vm, asked.last)
