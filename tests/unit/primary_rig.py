# SPDX-License-Identifier: Apache-2.0
"""A primary's decisions with nothing behind them: what it wanted done is in `done`, in order."""

from __future__ import annotations

from typing import Any

from remusdb.core import primary_effects as effects
from remusdb.core import primary_events as events
from remusdb.core.drive import drive
from remusdb.core.ownership import Claim, Ownership, Verdict
from remusdb.core.pipeline import PrimaryState
from remusdb.core.primary import Known, Primary
from remusdb.errors import RemusError

KNOWN = Known(vm="pg", host="alpha", peer="beta", term=4, armed=False, wanted=False, solo_after_s=2.0)
WON = Claim(Verdict.WON, Ownership("alpha", 6))
OPENING = (effects.ReleaseEpochs, effects.OpenGates)


class Rig:
    """Of VM `pg` on alpha, to beta; the first session is of term 5."""

    def __init__(self, window: int = 4, fails: type[Any] | None = None, **known: Any) -> None:
        """`fails`: effects of this kind cannot be performed."""
        values = {name: getattr(KNOWN, name) for name in KNOWN.__dataclass_fields__}
        self.primary = Primary(Known(**{**values, **known}), window)
        self.done: list[effects.Effect] = []
        self.fails = fails

    def tell(self, *told: events.Event) -> list[effects.Effect]:
        """What was done about these. RemusError for one that is refused."""
        before = len(self.done)
        for event in told:
            drive(self.primary.handle(event), self._perform)
        return self.done[before:]

    def _perform(self, effect: effects.Effect) -> None:
        if self.fails and isinstance(effect, self.fails):
            raise RemusError("no space left")
        self.done.append(effect)

    def begin(self) -> Rig:
        """A session whose initial sync runs."""
        self.tell(events.Opened(), events.Welcomed(5), events.Begun(5))
        return self

    def protect(self, epochs: int = 1) -> Rig:
        """A session whose first epochs are committed."""
        self.begin().tell(events.Copied())
        self.cut(epochs)
        self.tell(events.Acked(5, epochs), events.Settled())
        assert self.phase is PrimaryState.PROTECTED
        return self

    def cut(self, times: int = 1) -> None:
        """So many epochs are cut."""
        for _ in range(times):
            epoch = self.primary.pipeline.next_epoch()
            assert epoch is not None
            self.primary.pipeline.cut(epoch)

    def hold(self) -> Rig:
        """A session with an epoch in flight that lost its agent."""
        self.protect()
        self.cut()
        self.tell(events.Lost("the link is cut"))
        return self

    @property
    def phase(self) -> PrimaryState:
        return self.primary.phase

    @property
    def opened(self) -> bool:
        """Whether all that was held went out, and what follows does."""
        return any(
            isinstance(effect, effects.OpenGates) or effect == effects.TakeDown(open_gates=True) for effect in self.done
        )

    @property
    def saved(self) -> list[dict[str, Any]]:
        return [dict(effect.changes) for effect in self.done if isinstance(effect, effects.Save)]

    @property
    def reports(self) -> list[effects.Report]:
        return [effect for effect in self.done if isinstance(effect, effects.Report)]

    def at(self, wanted: object) -> int:
        """Where this effect, or the first one of this kind, was done."""
        for place, effect in enumerate(self.done):
            if effect == wanted or (isinstance(wanted, type) and isinstance(effect, wanted)):
                return place
        raise AssertionError(f"{wanted} was not done: {self.done}")

    def answer(self, command: str) -> RemusError | None:
        """What the command was answered."""
        [answer] = [effect for effect in self.done if isinstance(effect, effects.Answer) and effect.command == command]
        return answer.error
