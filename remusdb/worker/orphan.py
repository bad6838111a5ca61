# SPDX-License-Identifier: Apache-2.0
"""What a worker that died left on the agent: its standby, which is asked to be given up."""

from __future__ import annotations

import logging

from remusdb.core.messages import Hello, Notice, pack
from remusdb.core.primary import WORD_S
from remusdb.core.wire import FrameType
from remusdb.deadline import Deadline
from remusdb.errors import NoStandby, PeerUnreachable
from remusdb.transport.stream import FrameStream
from remusdb.worker.spec import ProtectionSpec

log = logging.getLogger(__name__)


def ask_for_word(spec: ProtectionSpec, hello: Hello) -> tuple[int, str]:
    """Have the agent give up the standby of the session of `hello`: its term, and why there is no word; empty if there
    is. Fenced where another host runs the VM."""
    try:
        greeting = spec.agent.hello(hello)
        term = greeting.welcome.term
        notice = pack(Notice("unprotect was asked for", forget=True))
        greeting.stream.send(FrameType.BYE, term, 0, notice)
        _await_renounce(greeting.stream, spec.peer.name)
    except NoStandby:
        log.info("the agent has no standby of that session")
    except PeerUnreachable as exc:
        return hello.term, str(exc)
    else:
        return term, ""
    return hello.term, ""


def _await_renounce(stream: FrameStream, peer: str) -> None:
    deadline = Deadline.after(WORD_S)
    while not deadline.over:
        frame = stream.receive(WORD_S)
        if frame is not None and frame.type is FrameType.RENOUNCE:
            return stream.close()
    raise PeerUnreachable(f"agent {peer} does not give up its standby")
