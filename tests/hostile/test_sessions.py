# SPDX-License-Identifier: Apache-2.0
"""Connections with a certificate that never become a session: they end, and nothing of them stays."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import pytest

from remusdb.core.messages import Question, pack
from remusdb.core.wire import FrameType
from remusdb.errors import RemusError
from remusdb.names import VmName
from tests.hostile.measure import MIB
from tests.hostile.rig import Rig, eventually
from tests.hostile.sayings import frame, hello, packed


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many descriptors as a flood needs."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_sessions_that_say_nothing(agent: Rig, many_files: None) -> None:
    with agent.unchanged(peak=256 * MIB):
        before = agent.size()
        silent = []
        for _ in range(600):
            with contextlib.suppress(OSError, RemusError, AssertionError):
                silent.append(agent.call("alpha"))
        during = agent.size()
        assert agent.serves("gamma"), "gamma is not served"
        assert during.threads < before.threads + 100, f"{during.threads} threads for {len(silent)} silent sessions"
        eventually(lambda: silent[-1].closed_within(0.1), "a silent session stays", 30)


def test_first_frames_that_are_none(agent: Rig) -> None:
    """Every type, with no payload, a wrong one, one that is no text, one that is deep: the call ends, no more."""
    deep = b"\x91" * 100_000 + b"\x90"
    deep_field = b"\x81\xa1x" + deep
    payloads = [
        b"",
        b"\xc1",
        b"\xff" * 100,
        b"\x81\xa2vm\xa2\xff\xfe",
        deep,
        deep_field,
        b"\xdd\xff\xff\xff\xff",
        b"\x80",
    ]
    payloads += [b"\xc6\xff\xff\xff\xff", pack(Question(VmName("pg"), "alpha", 0))[:-3], os.urandom(1000)]
    with agent.unchanged(peak=128 * MIB):
        for kind in [*FrameType]:
            for payload in payloads:
                with contextlib.suppress(RemusError, OSError, AssertionError):
                    caller = agent.call("alpha")
                    caller.say(kind, payload)
                    caller.close()
    assert "Traceback" not in agent.told()


def test_a_hello_in_pieces(agent: Rig) -> None:
    """A byte now and then does not keep a session that never began."""
    with agent.unchanged():
        caller = agent.call("alpha")
        payload = packed(hello("pg", "alpha"))

        data = frame(FrameType.HELLO, payload=payload)
        end, at = time.monotonic() + 25, 0
        with contextlib.suppress(RemusError):
            while time.monotonic() < end and at < len(data) - 1:
                caller.link.write([data[at : at + 1]])
                at += 1
                time.sleep(0.2)
        assert time.monotonic() < end, "the session is still there"
