# SPDX-License-Identifier: Apache-2.0
"""Many connections, sessions and questions: the honest are served, and nothing grows."""

from __future__ import annotations

import contextlib
import os
import time

from remusdb.core.wire import FrameType
from remusdb.errors import RemusError
from tests.hostile.measure import MIB
from tests.hostile.rig import Rig
from tests.hostile.sayings import domain_xml, hello, honest, packed


def test_the_log_of_a_peers_flood(agent: Rig) -> None:
    """The same with a certificate: HELLOs that are refused, frames that are none."""
    before, began, count = len(agent.told()), time.monotonic(), 0
    while count < 600 and time.monotonic() - began < 15:
        with contextlib.suppress(OSError, RemusError, AssertionError):
            caller = agent.call("alpha")
            if count % 2:
                caller.link.write([os.urandom(200)])
            else:
                caller.say(FrameType.HELLO, honest(f"vm{count}", "gamma"))
            caller.close()
            count += 1
    took = time.monotonic() - began
    grown = len(agent.told()) - before
    assert grown < 8192 + 2048 * took, f"{grown} bytes of log in {took:.1f} s, {count} sessions"


def test_questions_of_many_names(agent: Rig) -> None:
    with agent.unchanged(peak=128 * MIB):
        for number in range(800):
            assert agent.ask(f"name-{number}", "alpha") is not None
        before = agent.size().cpu_s
        time.sleep(1.0)
        assert agent.size().cpu_s - before < 0.5, "an idle agent works"
    assert agent.status() == []


def test_hellos_and_probes_of_many_names(agent: Rig) -> None:
    with agent.unchanged(peak=256 * MIB):
        for number in range(150):
            agent.hello(hello(f"name-{number}", "alpha", domain_xml="<domain"), "alpha")[0].close()
        for number in range(50):
            caller = agent.call("alpha")
            caller.say(FrameType.PROBE, packed({"xml": domain_xml(f"name-{number}"), "host_cpu": ""}))
            assert caller.hear() is not None
            caller.close()
    assert [one["vm"] for one in agent.status() if one["state"] != "empty"] == []
