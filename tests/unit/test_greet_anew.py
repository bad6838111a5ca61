# SPDX-License-Identifier: Apache-2.0
"""A new session with an agent that is far behind."""

from __future__ import annotations

from typing import Any

import pytest

from remusdb.core.standby import Offer, Standby
from remusdb.core.terms import JUMP_MAX, TERM_MAX
from remusdb.worker import greeting
from remusdb.worker.greeting import AgentBehind, greet_anew

ORDER: Any = None


def test_an_honest_agent_that_is_behind_is_asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another agent took the primary far; this one follows in its own steps, and is not waited for between them."""
    standby, term = Standby(term=5), 5 + JUMP_MAX

    def greet(_order: Any, told: int) -> int:
        answer = standby.hello("alpha", told, resume=False)
        if isinstance(answer, Offer):
            return answer.term
        standby.term = answer.learned
        raise AgentBehind("not yet")

    monkeypatch.setattr(greeting, "greet", greet)
    hello: Any = lambda: term  # noqa: E731
    assert greet_anew(ORDER, hello) == 6 + JUMP_MAX  # type: ignore[comparison-overlap]
    standby.term, term = 5, TERM_MAX
    with pytest.raises(AgentBehind):
        greet_anew(ORDER, hello)
    assert standby.term > 5 + JUMP_MAX
