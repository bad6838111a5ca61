# SPDX-License-Identifier: Apache-2.0
"""The backup host's agent: listens for primaries, keeps their replicas, answers its control socket."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from typing import Any

from remusdb.arbiter.arbiter import Arbiter
from remusdb.config import AgentConfig
from remusdb.control.notify import notify
from remusdb.control.server import ControlServer, ProgressFn
from remusdb.errors import UsageError
from remusdb.history import History
from remusdb.hooks import Hooks
from remusdb.names import require_name
from remusdb.state import StateStore
from remusdb.transport.listener import Listener
from remusdb.transport.tls import server_context
from remusdb_agents.backup.admission import MIB, Admission
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.forgetting import forget
from remusdb_agents.backup.guests import Guests
from remusdb_agents.backup.registry import Registry
from remusdb_agents.backup.rehearsal.copy import sweep
from remusdb_agents.backup.sessions import Sessions
from remusdb_agents.backup.ticker import Ticker

log = logging.getLogger(__name__)

FLUSH_S = 2.0
REHEARSE_MOST_S = 600  # the replica stands still meanwhile


class AgentDaemon:
    """All replicas of this host."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        agent = config.agent
        self._context = Context(
            config,
            StateStore(agent.state_dir),
            History(agent.state_dir, Hooks(agent.hooks_dir)),
            Arbiter(config.arbiter) if config.arbiter else None,
            Admission(config.limits.memory_max_mib * MIB),
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
        handlers = {
            "status": self._status,
            "failover": self._failover,
            "rehearse": self._rehearse,
            "forget": self._forget,
        }
        sweep(self._config)
        self._registry.recover()
        self._ticker.start()
        with contextlib.ExitStack() as stack:
            control = ControlServer(agent.run_dir / "agent.sock", handlers)
            control.start()
            stack.callback(control.close)
            listener = Listener(agent.listen, agent.port, context)
            guests = Guests(self._sessions.serve, self._registry.live)
            listener.start(guests.serve)
            stack.callback(listener.close)
            log.info("agent %s listens on %s:%d", agent.name, agent.listen, agent.port)
            if not self._config.primaries:
                log.warning("no host may keep standbys here: agent.toml has no [primaries.HOST]")
            notify("READY=1")
            self._stop.wait()
            for replica in self._registry.live():
                replica.close()
            self._ticker.stop()
            self._context.history.flush(FLUSH_S)

    def _status(self, args: dict[str, Any], _progress: object) -> dict[str, Any]:
        return {"vms": self._registry.status(args.get("vm"))}

    def _failover(self, args: dict[str, Any], _progress: object) -> dict[str, Any]:
        word = args.get("primary_is_dead") is True
        with self._registry.known(require_name(args.get("vm"))) as replica:
            return replica.takeover.promote("asked for with `remusdb failover`", word=word, by="operator")

    def _rehearse(self, args: dict[str, Any], progress: ProgressFn) -> dict[str, Any]:
        seconds, port = args.get("seconds"), args.get("tcp_port")
        if not isinstance(seconds, int | float) or not 1 <= seconds <= REHEARSE_MOST_S:
            raise UsageError(f"a rehearsal takes 1 to {REHEARSE_MOST_S} seconds")
        if port is not None and not (isinstance(port, int) and 0 < port < 65536):
            raise UsageError(f"not a TCP port: {port}")
        with self._registry.known(require_name(args.get("vm"))) as replica:
            return replica.rehearse(port, float(seconds), progress)

    def _forget(self, args: dict[str, Any], _progress: object) -> dict[str, Any]:
        lose_replica = args.get("lose_replica", False)
        if not isinstance(lose_replica, bool):
            raise UsageError("`lose_replica` is true or false")
        with self._registry.known(require_name(args.get("vm"))) as replica:
            return forget(replica, lose_replica=lose_replica)
