# SPDX-License-Identifier: Apache-2.0
"""Who is let in, and as whom: held since the first version, seen here on the whole agent."""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path

import pytest

from remusdb.core.messages import Refuse, Welcome
from remusdb.core.wire import FrameType
from remusdb.errors import RemusError
from tests.hostile.rig import AGENT, SOURCES, Caller, Rig
from tests.hostile.sayings import hello, honest


def test_a_session_of_an_honest_primary(rig: Rig) -> None:
    """The rig itself: HELLO, one epoch, its acknowledgement."""
    rig.start(made_up=True)
    caller, welcome = rig.welcomed(honest("pg", "gamma"), "gamma")
    assert welcome.term == 1 and not welcome.resumed
    caller.commit(welcome.term, 1)
    frame = caller.hear(FrameType.ACK)
    assert frame is not None and (frame.term, frame.epoch) == (1, 1)
    assert (rig.known("pg").owner, rig.known("pg").term) == ("gamma", 1)


def test_who_has_no_certificate_of_this_ca_is_not_let_in(agent: Rig, certs: Path) -> None:
    with agent.unchanged():
        with pytest.raises((RemusError, OSError)):
            Caller(certs / "stranger" / "alpha", agent.port, SOURCES["alpha"])
        context = ssl.create_default_context(cafile=str(certs / "ca" / "ca.pem"))
        with socket.create_connection((AGENT, agent.port), 20) as sock, contextlib.suppress(OSError):
            with context.wrap_socket(sock, server_hostname="beta") as wrapped:  # without a certificate
                assert wrapped.recv(1) == b""


def test_a_primary_is_called_as_in_its_certificate(agent: Rig) -> None:
    with agent.unchanged():
        for name in ("gamma", "beta", "ALPHA"):
            refuse = agent.refused(hello("pg", name), "alpha")
            assert not refuse.fenced and not refuse.renounced


def test_a_second_primary_while_the_first_is_connected(rig: Rig) -> None:
    rig.start(made_up=True)
    first, welcome = rig.welcomed(honest("pg", "gamma"), "gamma")
    first.commit(welcome.term, 1)
    assert first.hear(FrameType.ACK) is not None
    for changes in ({}, {"term": 99}, {"resume": True, "term": 99}, {"resume": True, "term": 1}):
        refuse = rig.refused(hello("pg", "alpha", **changes), "alpha")
        assert not refuse.fenced and not refuse.renounced, refuse
    first.commit(welcome.term, 2)
    frame = first.hear(FrameType.ACK)
    assert frame is not None and frame.epoch == 2, "the first session goes on"


def test_a_session_is_taken_up_again(rig: Rig) -> None:
    rig.start(made_up=True)
    first, welcome = rig.welcomed(honest("pg", "gamma"), "gamma")
    first.commit(welcome.term, 1)
    assert first.hear(FrameType.ACK) is not None
    first.close()
    _, answer = rig.hello(hello("pg", "gamma", resume=True, term=welcome.term), "gamma")
    assert isinstance(answer, Welcome) and answer.resumed and answer.committed == 1
    refuse = rig.refused(hello("other", "gamma", resume=True, term=1), "gamma")
    assert isinstance(refuse, Refuse) and refuse.renounced, "there is no replica of it"
