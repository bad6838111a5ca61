# SPDX-License-Identifier: Apache-2.0
"""A new session with an agent that is far behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from remusdb.config import Protection, Tls
from remusdb.core.messages import Hello
from remusdb.core.standby import Offer, Standby
from remusdb.core.terms import JUMP_MAX, TERM_MAX
from remusdb.transport.agent_client import Agent, AgentBehind, Greeting


class Behind(Agent):
    """One whose standby answers by the rules, and learns a step at a time."""

    standby = Standby(term=5)

    def hello(self, hello: Hello, try_s: float | None = None) -> Greeting:
        answer = self.standby.hello("alpha", hello.term, resume=False)
        if isinstance(answer, Offer):
            welcome: Any = SimpleNamespace(term=answer.term)
            stream: Any = None
            return Greeting(stream, welcome)
        self.standby.term = answer.learned
        raise AgentBehind("not yet")


def test_an_honest_agent_that_is_behind_is_asked_again_at_once() -> None:
    """Another agent took the primary far; this one follows in its own steps, and is not waited for between them."""
    agent = Behind("beta", "192.0.2.2", 1, Tls(), Protection())

    def hello(term: int) -> Any:
        return lambda: SimpleNamespace(term=term)

    assert agent.hello_again(hello(5 + JUMP_MAX)).welcome.term == 6 + JUMP_MAX
    agent.standby.term = 5
    with pytest.raises(AgentBehind):
        agent.hello_again(hello(TERM_MAX))
    assert agent.standby.term > 5 + JUMP_MAX
