# SPDX-License-Identifier: Apache-2.0
"""What comes over the agent's listener: a HELLO and the session that follows, an ASK, or a PROBE.

Invariant: whatever a peer sends, it is answered, and what it could not have has left nothing behind here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from remusdb.core.messages import Hello, Question, Refuse, Welcome, pack, unpack
from remusdb.core.owed import Hopeless
from remusdb.core.wire import FROM_PRIMARY, OPENINGS, Frame, FrameType
from remusdb.errors import BadFrame, RemusError
from remusdb.log import VmLog
from remusdb.quietly import NOISY
from remusdb.transport.stream import FrameStream
from remusdb_agents.backup.capabilities import gather, question
from remusdb_agents.backup.context import Context
from remusdb_agents.backup.primaries import not_for_vm, not_listed
from remusdb_agents.backup.registry import Registry
from remusdb_agents.backup.replica import Replica
from remusdb_agents.backup.seeding import TornCopy

log = logging.getLogger(__name__)

HELLO_S = 10.0
DRAIN_S = 2.0


class Sessions:
    """Serves the peers' connections, each in a thread of its own."""

    def __init__(self, context: Context, registry: Registry) -> None:
        self._context = context
        self._registry = registry

    def serve(self, stream: FrameStream) -> None:
        """One connection, from its first frame to its end. Of a host that is not listed nothing is read."""
        stranger = not_listed(self._context.config, stream.peer_name)
        if stranger is not None:
            return self._refuse(stream, stranger)
        stream.allowed = OPENINGS
        frame = stream.receive(HELLO_S)
        answers: dict[FrameType, Callable[[FrameStream, Frame], None]] = {
            FrameType.HELLO: self._hello,
            FrameType.ASK: self._tell_standing,
            FrameType.PROBE: self._tell_capabilities,
        }
        answer = answers.get(frame.type) if frame is not None else None
        if frame is None or answer is None:
            raise BadFrame(f"no HELLO came within {HELLO_S:g} s")
        answer(stream, frame)

    def _hello(self, stream: FrameStream, frame: Frame) -> None:
        with contextlib.ExitStack() as stack:
            try:
                hello = unpack(Hello, frame.payload)
                refused = not_for_vm(self._context.config, stream.peer_name, hello.vm)
                if refused is None:
                    replica = stack.enter_context(self._registry.using(hello.vm))
            except Exception as exc:
                refused = self._failed(stream, exc)
            if refused is not None:
                return self._refuse(stream, refused)
            answer = replica.greet(stream, hello)
            if isinstance(answer, Refuse):
                return self._refuse(stream, answer, hello.vm)
            self._follow(replica, stream, answer, hello.told)

    def _tell_standing(self, stream: FrameStream, frame: Frame) -> None:
        """Who owns this VM, as far as is known here?"""
        try:
            asked = unpack(Question, frame.payload)
            refused = not_for_vm(self._context.config, stream.peer_name, asked.vm)
            standing = self._registry.standing(asked.vm) if refused is None else None
        except Exception as exc:
            refused, standing = self._failed(stream, exc), None
        if standing is None:
            assert refused is not None
            return self._refuse(stream, refused)
        stream.send(FrameType.STANDING, standing.term, 0, pack(standing))
        stream.close(drain_s=DRAIN_S)

    def _tell_capabilities(self, stream: FrameStream, frame: Frame) -> None:
        """What can this host run, and what would this VM lack here?"""
        try:
            asked = question(frame.payload)
            vm = "" if asked is None else asked.vm
            refused = not_for_vm(self._context.config, stream.peer_name, vm) if vm else None
            capabilities = (
                gather(self._context, asked, stream.peer_name, self._registry.find) if refused is None else None
            )
        except Exception as exc:
            refused, capabilities = self._failed(stream, exc), None
        if capabilities is None:
            assert refused is not None
            return self._refuse(stream, refused)
        stream.send(FrameType.PROBE, 0, 0, pack(capabilities))
        stream.close(drain_s=DRAIN_S)

    def _failed(self, stream: FrameStream, exc: Exception) -> Refuse:
        """Task boundary: what a peer sent does not end in a traceback that it does not hear of."""
        if isinstance(exc, RemusError):
            return Refuse(str(exc), exc.hint)
        log.error("what host %s sent could not be answered", stream.peer_name, exc_info=exc, extra=NOISY)
        return Refuse("internal error of the agent", f"see the log of remusdb-agent on {self._context.name}")

    def _refuse(self, stream: FrameStream, answer: Refuse, vm: str = "-") -> None:
        VmLog(log, vm).warning("host %s is refused: %s", stream.peer_name, answer.reason, extra=NOISY)
        stream.send(FrameType.REFUSE, answer.term, 0, pack(answer))
        stream.close(drain_s=DRAIN_S)

    def _follow(self, replica: Replica, stream: FrameStream, welcome: Welcome, told: list[int]) -> None:
        try:
            stream.send(FrameType.WELCOME, welcome.term, 0, pack(welcome))
            replica.welcomed(stream, welcome, told)
            stream.allowed = FROM_PRIMARY
            replica.log(log).info("session of term %d with %s", welcome.term, stream.peer_name, extra=NOISY)
            while True:
                frame = stream.receive(0.5)
                if frame is not None and not replica.take(stream, frame):
                    stream.close(drain_s=DRAIN_S)
                    return
        except Exception as exc:  # task boundary: whatever ended the session, the replica must know
            trace = not isinstance(exc, RemusError)
            replica.log(log).warning("session ended: %s", exc, exc_info=trace, extra=NOISY)
            replica.lost(stream, str(exc), hopeless=isinstance(exc, Hopeless | TornCopy))
            stream.close(drain_s=DRAIN_S)
