# SPDX-License-Identifier: Apache-2.0
"""The events of one VM, worked off one after the other by whoever posts them (docs/decisions/0023).

Invariants: what the core knows is read and changed by one thread at a time, the one whose turn it is; nothing that may
wait for libvirt, the arbiter or a peer is done in a turn. What an event begins is done by the thread that posted it,
after its turn, and what came of it is worked off before `post` returns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import get_args

from remusdb.core.backup import Backup
from remusdb.core.backup_effects import AtOnce, Begun, Effect, Later
from remusdb.core.backup_events import READS, Durable, Event, Read
from remusdb.core.drive import drive
from remusdb.threads import apart, spawn

_BEGUN = frozenset(get_args(Begun))

Perform = Callable[[AtOnce], None]
Begin = Callable[[Begun], Event | None]


class Desk:
    """Where a VM's events are worked off. Any thread may post, but for one whose turn it is."""

    def __init__(self, core: Backup, read: Callable[[], Durable]) -> None:
        """`read` the VM's state file."""
        self._core, self._read = core, read
        self._perform: Perform
        self._begin: Begin
        self.turn = threading.Condition()
        self._theirs = 0  # the thread whose turn it is
        self._begun = 0  # threads that do what was begun

    def staff(self, perform: Perform, begin: Begin) -> None:
        """Who is to `perform` what is done at once, and to `begin` what takes its time, giving what came of it."""
        self._perform, self._begin = perform, begin

    @property
    def idle(self) -> bool:
        """Whether nothing that was begun is still being done."""
        return not self._begun

    def post(self, event: Event) -> None:
        """Have this decided, and all that follows from it performed. What the core raises is raised."""
        if self._theirs == threading.get_ident():
            raise RuntimeError(f"{type(event).__name__} is posted in the middle of another event")
        begun: list[Begun] = []
        try:
            with self.turn:
                self._theirs = threading.get_ident()
                try:
                    if isinstance(event, READS):
                        self._reread()
                    drive(self._core.handle(event), lambda effect: self._take(effect, begun))
                finally:
                    self._theirs = 0
                    self._begun += bool(begun)
                    self.turn.notify_all()
        finally:  # what was begun is done, whatever else could not be
            if begun:
                self._do(begun)

    def reread(self) -> None:
        """Without a replica, what the state file says now counts."""
        with self.turn:
            self._reread()

    def apart(self, work: Callable[[], object], name: str) -> None:
        """Do it in a thread of its own, or, where none can be had, in this one."""
        self._counted()
        apart(self._to_its_end, work, name=name)

    def spawn(self, work: Callable[[], object], name: str) -> None:
        """Do it in a thread of its own. NoThread."""
        self._counted()
        try:
            spawn(self._to_its_end, work, name=name)
        except BaseException:
            self._done()
            raise

    def _take(self, effect: Effect, begun: list[Begun]) -> None:
        if type(effect) in _BEGUN:
            begun.append(effect)  # type: ignore[arg-type]
        else:
            self._perform(effect)  # type: ignore[arg-type]

    def _do(self, begun: list[Begun]) -> None:
        try:
            for effect in begun:
                came = self._wait(effect) if isinstance(effect, Later) else self._begin(effect)
                if came is not None:
                    self.post(came)
        finally:
            self._done()

    def _wait(self, effect: Later) -> Event:
        with self.turn:
            self.turn.wait_for(lambda: not self._core.phase.moving)
        return effect.event

    def _reread(self) -> None:
        if self._core.rereads:
            for _ in self._core.handle(Read(self._read())):
                raise AssertionError("what is read decides nothing")

    def _to_its_end(self, work: Callable[[], object]) -> None:
        try:
            work()
        finally:
            self._done()

    def _counted(self) -> None:
        with self.turn:
            self._begun += 1

    def _done(self) -> None:
        with self.turn:
            self._begun -= 1
