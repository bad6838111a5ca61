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
from remusdb.core.messages import Hello, Question, Refuse, Welcome, pack, unpack
from remusdb.core.wire import FROM_PRIMARY, OPENINGS, FrameType
from remusdb.errors import BadFrame, NotProtected, RemusError, UsageError
from remusdb.history import History
from remusdb.hooks import Hooks
from remusdb.names import require_name
from remusdb.quietly import NOISY
from remusdb.state import StateStore
from remusdb.transport.listener import Listener
from remusdb.transport.stream import FrameStream
from remusdb.transport.tls import server_context
from remusdb_agents.admission import MIB, Admission
from remusdb_agents.context import Context
from remusdb_agents.facts import Asked, gather, question
from remusdb_agents.guests import Guests
from remusdb_agents.inbox import EpochTooLarge, Unbridled
from remusdb_agents.primaries import not_for_vm, not_listed
from remusdb_agents.rehearsal_copy import sweep
from remusdb_agents.replica import Replica
from remusdb_agents.seeding import TornCopy

log = logging.getLogger(__name__)

HELLO_S = 10.0
DRAIN_S = 2.0
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
        self._lock = threading.Lock()
        self._replicas = {name: Replica(name, self._context) for name in self._context.store.names()}
        self._stop = threading.Event()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self._stop.set())
        tls, agent = self._config.tls, self._config.agent
        context = server_context(tls.ca, tls.cert, tls.key)
        handlers = {"status": self._status, "failover": self._failover, "rehearse": self._rehearse}
        sweep(self._config)
        with contextlib.ExitStack() as stack:
            control = ControlServer(agent.run_dir / "agent.sock", handlers)
            control.start()
            stack.callback(control.close)
            listener = Listener(agent.listen, agent.port, context)
            guests = Guests(self._serve, lambda: list(self._replicas.values()))
            listener.start(guests.serve)
            stack.callback(listener.close)
            log.info("agent %s listens on %s:%d", agent.name, agent.listen, agent.port)
            if not self._config.primaries:
                log.warning("no host may keep standbys here: agent.toml has no [primaries.HOST]")
            notify("READY=1")
            self._stop.wait()
            for replica in self._replicas.values():
                replica.close()
            self._context.history.flush(FLUSH_S)

    def _serve(self, stream: FrameStream) -> None:
        """One connection, from HELLO to its end. Of a host that is not listed nothing is read."""
        stranger = not_listed(self._config, stream.peer_name)
        if stranger is not None:
            return self._refuse(stream, "-", stranger)
        stream.allowed = OPENINGS
        frame = stream.receive(HELLO_S)
        if frame is not None and frame.type is FrameType.PROBE:
            return self._tell_facts(stream, question(frame.payload))
        if frame is not None and frame.type is FrameType.ASK:
            return self._tell_standing(stream, unpack(Question, frame.payload))
        if frame is None:
            raise BadFrame(f"no HELLO came within {HELLO_S:g} s")
        hello = unpack(Hello, frame.payload)
        other_vm = not_for_vm(self._config, stream.peer_name, hello.vm)
        if other_vm is not None:
            return self._refuse(stream, hello.vm, other_vm)
        replica = self._replica(hello.vm)
        answer = replica.greet(stream, hello)
        if isinstance(answer, Refuse):
            return self._refuse(stream, hello.vm, answer)
        self._follow(replica, stream, answer, hello.told)

    def _refuse(self, stream: FrameStream, vm: str, answer: Refuse) -> None:
        log.warning("%s: host %s is refused: %s", vm, stream.peer_name, answer.reason, extra=NOISY)
        stream.send(FrameType.REFUSE, answer.term, 0, pack(answer))
        stream.close(drain_s=DRAIN_S)

    def _tell_facts(self, stream: FrameStream, asked: Asked | None) -> None:
        """What can this host run, and what would this VM lack here?"""
        vm = "" if asked is None else asked.vm
        other_vm = not_for_vm(self._config, stream.peer_name, vm) if vm else None
        if other_vm is not None:
            return self._refuse(stream, vm, other_vm)
        facts = gather(self._context, asked, stream.peer_name, self._replicas.get)
        stream.send(FrameType.PROBE, 0, 0, pack(facts))
        stream.close(drain_s=DRAIN_S)

    def _tell_standing(self, stream: FrameStream, question: Question) -> None:
        """Who owns this VM, as far as is known here?"""
        other_vm = not_for_vm(self._config, stream.peer_name, question.vm)
        if other_vm is not None:
            return self._refuse(stream, question.vm, other_vm)
        standing = self._replica(question.vm).standing()
        stream.send(FrameType.STANDING, standing.term, 0, pack(standing))
        stream.close(drain_s=DRAIN_S)

    def _follow(self, replica: Replica, stream: FrameStream, welcome: Welcome, told: list[int]) -> None:
        try:
            stream.send(FrameType.WELCOME, welcome.term, 0, pack(welcome))
            replica.welcomed(stream, welcome, told)
            stream.allowed = FROM_PRIMARY
            log.info("%s: session of term %d with %s", replica.vm, welcome.term, stream.peer_name)
            while True:
                frame = stream.receive(0.5)
                if frame is not None and not replica.take(stream, frame):
                    stream.close(drain_s=DRAIN_S)
                    return
        except Exception as exc:  # task boundary: whatever ended the session, the replica must know
            trace = not isinstance(exc, RemusError)
            log.warning("%s: session ended: %s", replica.vm, exc, exc_info=trace, extra=NOISY)
            replica.lost(stream, str(exc), hopeless=isinstance(exc, EpochTooLarge | Unbridled | TornCopy))
            stream.close(drain_s=DRAIN_S)

    def _replica(self, vm: str) -> Replica:
        """The replica of a VM that another host names; UsageError for a name that no VM has."""
        require_name(vm)
        with self._lock:
            if vm not in self._replicas:
                self._replicas[vm] = Replica(vm, self._context)
            return self._replicas[vm]

    def _status(self, args: dict[str, Any], _progress: object) -> dict[str, Any]:
        wanted = args.get("vm")
        replicas = list(self._replicas.values())
        return {"vms": [replica.status() for replica in replicas if wanted in (None, replica.vm)]}

    def _failover(self, args: dict[str, Any], _progress: object) -> dict[str, Any]:
        word = args.get("primary_is_dead") is True
        return self._known(args).takeover.promote("asked for with `remusdb failover`", word=word, by="operator")

    def _rehearse(self, args: dict[str, Any], progress: ProgressFn) -> dict[str, Any]:
        seconds, port = args.get("seconds"), args.get("tcp_port")
        if not isinstance(seconds, int | float) or not 1 <= seconds <= REHEARSE_MOST_S:
            raise UsageError(f"a rehearsal takes 1 to {REHEARSE_MOST_S} seconds")
        if port is not None and not (isinstance(port, int) and 0 < port < 65536):
            raise UsageError(f"not a TCP port: {port}")
        return self._known(args).rehearse(port, float(seconds), progress)

    def _known(self, args: dict[str, Any]) -> Replica:
        vm = str(args.get("vm"))
        if vm not in self._replicas:
            raise NotProtected(f"no replica of VM {vm} is on this host", hint="ask the agent of the backup host")
        return self._replicas[vm]
