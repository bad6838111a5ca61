# SPDX-License-Identifier: Apache-2.0
"""An agent that can make no thread goes on when it can again, or ends: it is never alive and deaf."""

from __future__ import annotations

import contextlib
import time

from remusdb.control import call
from remusdb.control.api import AgentStatus, AgentVms
from remusdb.core.wire import FrameType
from remusdb.errors import RemusError
from tests.hostile.rig import Rig, eventually
from tests.hostile.sayings import honest


def hears(rig: Rig) -> bool:
    """Whether a peer and an operator are answered."""
    with contextlib.suppress(RemusError, OSError, AssertionError):
        return rig.serves() and isinstance(call(rig.run_dir / "agent.sock", AgentStatus(), timeout_s=5), AgentVms)
    return False


def test_no_thread_can_be_made_for_a_while(rig: Rig) -> None:
    stop = rig.folder / "no-threads"
    rig.start(made_up=True, env={"NO_THREADS": str(stop)})
    caller, welcome = rig.welcomed(honest("pg", "gamma"), "gamma")
    stop.touch()
    for _ in range(10):
        with contextlib.suppress(RemusError, OSError, AssertionError):
            rig.call("alpha", within_s=0.2).close()
        with contextlib.suppress(RemusError, OSError):
            call(rig.run_dir / "agent.sock", AgentStatus(), timeout_s=0.2)
    for kind in (FrameType.TAKEOVER, FrameType.COMMIT):  # of a session that is there already
        with contextlib.suppress(RemusError):
            caller.say(kind, b"", welcome.term, 1)
    time.sleep(0.5)
    stop.unlink()
    eventually(lambda: not rig.alive() or hears(rig), "the agent is alive and deaf")
