# SPDX-License-Identifier: Apache-2.0
"""Frames held per epoch: the tap gate's queue, without any I/O.

Owns every frame between its arrival and its sending. Invariant: a frame reaches `sending` only by `release` of
its epoch or a later one, or by `open_all`; order never changes. With a rule (commit protection) a frame of an open
transaction may go `early` instead: only while the rule says so, nothing of its flow waits here, and the lease runs.

    passing ──hold()──▶ holding ──open_all()──▶ passing
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from remusdb.core.release.frames import OpenFlow
from remusdb.core.release.rule import CommitRule, Flow


class EpochOrder(ValueError):
    """A mark whose epoch is not above the last one."""


@dataclass(slots=True)
class Held:
    """A frame that waits, or may be sent. `flow`: whose rule is told when it has left; None where none is.

    `early`: the rule let it go at once, so it is not the rule that counts it while it waits all the same.
    """

    frame: bytes
    flow: Flow | None = None
    early: bool = False


class HoldQueue:
    """At most `max_bytes` of frames, the ones on their way out included; more are dropped, newest first."""

    def __init__(self, max_bytes: int, rule: CommitRule | None = None) -> None:
        self.sending: deque[Held] = deque()
        self.early: deque[Held] = deque()  # goes first: nothing in `sending` is of one of these flows
        self.held_bytes = 0
        self.dropped = 0
        self.released = 0
        self.released_early = 0
        self.flows: Sequence[OpenFlow] = ()  # open at the last mark
        self._max_bytes = max_bytes
        self._rule = rule
        self._early_until = 0.0
        self._kept: dict[int, int] = {}  # frames of a flow, by its id, that wait although the rule would let them go
        self._holding = False
        self._open: list[Held] = []
        self._marked: deque[tuple[int, list[Held]]] = deque()
        self._last_epoch = -1

    @property
    def held_frames(self) -> int:
        """Frames here, the ones on their way out included."""
        marked = sum(len(frames) for _epoch, frames in self._marked)
        return len(self._open) + marked + len(self.sending) + len(self.early)

    @property
    def waits(self) -> bool:
        """Whether a frame came since the last mark that waits for its epoch."""
        return bool(self._open)

    def hold(self) -> None:
        """From now on frames wait for their epoch. If they did not before, a new count of epochs begins."""
        if not self._holding:
            self._holding = True
            self._last_epoch = -1
            self._forget()

    def accept(self, frames: list[bytes], now: float = 0.0) -> None:
        """Take frames in the order they came. `now`: of the clock of `release`'s lease, in seconds."""
        size = sum(map(len, frames))
        if self.held_bytes + size > self._max_bytes:
            frames = self._what_fits(frames, now)
            size = sum(map(len, frames))
        self.held_bytes += size
        if not self._holding:
            self.sending.extend(map(Held, frames))
        elif self._rule is None:
            self._open.extend(map(Held, frames))
        else:
            for frame in frames:
                self._judge(self._rule, frame, now)

    def _judge(self, rule: CommitRule, frame: bytes, now: float) -> None:
        judged = rule.judge(frame, now)
        held = Held(frame, judged.flow, judged.early)
        if not judged.early:
            self._open.append(held)
        elif id(judged.flow) not in self._kept:
            self.early.append(held)
        else:
            self._keep(held)
            self._open.append(held)

    def _keep(self, held: Held) -> None:
        self._kept[id(held.flow)] = self._kept.get(id(held.flow), 0) + 1

    def _what_fits(self, frames: list[bytes], now: float) -> list[bytes]:
        space = self._max_bytes - self.held_bytes
        fitting = []
        for frame in frames:
            # Stop at the first that does not fit: a later, smaller one must not overtake it.
            if len(frame) > space:
                break
            space -= len(frame)
            fitting.append(frame)
        lost = frames[len(fitting) :]
        self.dropped += len(lost)
        if self._holding and self._rule is not None:
            # Nothing tells the rule that these have left: what follows in their flows waits, as it must, since their
            # epoch is not committed yet.
            for frame in lost:
                self._rule.judge(frame, now)
        return fitting

    def mark(self, epoch: int) -> None:
        """What came so far and is not marked belongs to `epoch`."""
        if epoch <= self._last_epoch:
            raise EpochOrder(f"mark of epoch {epoch} after epoch {self._last_epoch}")
        self._last_epoch = epoch
        self._hold_early()
        if self._open:
            self._marked.append((epoch, self._open))
            self._open = []

    def name_flows(self) -> None:
        """Note which flows are open, after a mark and before another frame is accepted."""
        if self._rule is not None:
            self.flows = self._rule.open_flows()

    def release(self, epoch: int, early_until: float = 0.0) -> None:
        """Epochs up to `epoch` may be sent, and what the rule lets go early, until then."""
        self._early_until = early_until
        while self._marked and self._marked[0][0] <= epoch:
            self.sending.extend(self._marked.popleft()[1])

    def hold_back(self, now: float) -> None:
        """Where the lease is over, what was to go early waits for its epoch."""
        if now >= self._early_until:
            self._hold_early()

    def _hold_early(self) -> None:
        """Before all that came since the last mark: of the same flows it is the first."""
        for held in self.early:
            self._keep(held)
        self._open[:0] = self.early
        self.early.clear()

    def open_all(self) -> None:
        """Everything may be sent, and what comes too."""
        self.sending.extendleft(reversed(self.early))
        self.early.clear()
        for _epoch, frames in self._marked:
            self.sending.extend(frames)
        self.sending.extend(self._open)
        self._marked.clear()
        self._open = []
        self._holding = False
        self._forget()

    def drop_held(self) -> None:
        """Forget everything that has not been sent; from now on hold, with a new count of epochs."""
        self.dropped += self.held_frames
        self.sending.clear()
        self.early.clear()
        self._marked.clear()
        self._open = []
        self.held_bytes = 0
        self._holding = True
        self._last_epoch = -1
        self._forget()

    def _forget(self) -> None:
        """What is known of flows, the lease too. What is still on its way out is of no flow any more."""
        for held in self.sending:
            held.flow = None
        self._kept.clear()
        self._early_until, self.flows = 0.0, ()
        if self._rule is not None:
            self._rule.forget_all()

    def sent(self, held: Held, ok: bool) -> None:
        """`held`, taken from the left of `early` or `sending`, is gone."""
        self.held_bytes -= len(held.frame)
        if ok:
            self.released += 1
        else:
            self.dropped += 1

    def sent_early(self, held: Held, ok: bool) -> None:
        """The same, of one from `early`: it waited for nothing."""
        self.released_early += ok
        self.sent(held, ok)

    def left(self, held: Held) -> None:
        """The same, of one from `sending`: its flow has one less that waits."""
        if held.flow is None or self._rule is None:
            return
        if not held.early:
            self._rule.left(held.flow)
        elif self._kept.get(id(held.flow), 0) > 1:
            self._kept[id(held.flow)] -= 1
        else:
            self._kept.pop(id(held.flow), None)
