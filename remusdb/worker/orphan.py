# SPDX-License-Identifier: Apache-2.0
"""Undo what a worker that died left behind: its gates, once no backup can take over any more."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from remusdb.core.messages import Notice, pack
from remusdb.core.wire import FrameType
from remusdb.errors import NoStandby, PeerUnreachable, RefusedForSafety
from remusdb.transport.stream import FrameStream
from remusdb.worker.ending import DEAD_HINT, RENOUNCE_S
from remusdb.worker.greeting import greet
from remusdb.worker.resources import Parts

if TYPE_CHECKING:
    from remusdb.worker.session import Session

log = logging.getLogger(__name__)


def take_out(session: Session, peer_is_dead: bool) -> None:
    """Unprotect without protecting first. RefusedForSafety when the agent does not give its word."""
    session.parts = Parts(session.order)
    if session.was_armed:
        session.adopt_gates()
    try:
        greeting = greet(session.order, session.hello(True))
        session.pipeline.term = greeting.welcome.term
        notice = pack(Notice("unprotect was asked", forget=True))
        greeting.stream.send(FrameType.BYE, greeting.welcome.term, 0, notice)
        _await_renounce(greeting.stream, session.order.peer.name)
    except NoStandby:
        log.info("the agent has no standby of that session")
    except PeerUnreachable as exc:
        if session.was_armed and not peer_is_dead:
            session.close_parts(remove_gates=False)
            raise RefusedForSafety(f"{exc}: the agent may have taken over", hint=DEAD_HINT) from exc
    session.ending.finish("unprotected", "unprotect was asked")


def _await_renounce(stream: FrameStream, peer: str) -> None:
    end = time.monotonic() + RENOUNCE_S
    while time.monotonic() < end:
        frame = stream.receive(RENOUNCE_S)
        if frame is not None and frame.type is FrameType.RENOUNCE:
            return stream.close()
    raise PeerUnreachable(f"agent {peer} does not give its standby up")
