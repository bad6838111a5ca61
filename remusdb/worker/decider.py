# SPDX-License-Identifier: Apache-2.0
"""The thread of one session: takes its events in order, has each decided, and its effects performed.

Invariant: one event is worked off at a time, and each effect is performed before the decision goes on. `lock` guards
the decisions: the epoch loop asks them for the next epoch while this thread performs. Whoever waits for what they lead
to is told when an event was worked off.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from remusdb.core.drive import drive
from remusdb.core.primary import Primary
from remusdb.core.primary_effects import Answer, Command, Effect, SetTimer
from remusdb.core.primary_events import Event
from remusdb.errors import RemusError
from remusdb.threads import vital
from remusdb.worker.hurry import hurry
from remusdb.worker.mailbox import Letter, Mailbox

log = logging.getLogger(__name__)


class Decider:
    """Of one session. `perform` whatever is not the decider's own: timers and the answers to commands."""

    def __init__(self, primary: Primary, mailbox: Mailbox, perform: Callable[[Effect], None]) -> None:
        self.lock = threading.Condition()
        self._primary = primary
        self._mailbox = mailbox
        self._perform = perform
        self._commands: dict[Command, list[Future[None]]] = {"unprotect": [], "switchover": []}

    def start(self) -> None:
        """Decide for as long as this process lives. NoThread."""
        vital(self._decide, name="session")

    def tell(self, event: Event) -> None:
        """Returns when the event was worked off; raises what that raised. Not from the session's own thread."""
        self._mailbox.send(event).result()

    def carry_out(self, command: Command, event: Event) -> None:
        """`tell`, and wait until the command is answered; raises its error."""
        answer: Future[None] = Future()
        self._commands[command].append(answer)
        try:
            self.tell(event)
            answer.result()
        finally:
            self._commands[command].remove(answer)

    def _decide(self) -> None:
        hurry()  # what the agent acknowledged goes out at once, also on a busy host
        while True:
            self.work_off(self._mailbox.take())

    def work_off(self, letter: Letter) -> None:
        """One event. Whatever fails is the answer to who waits for it, and ends nothing."""
        error: Exception | None = None
        try:
            drive(self._primary.handle(letter.event), self._do, self.lock)
        except Exception as exc:  # task boundary: the next event may be the one that ends the session
            error = exc
            if letter.done is None or not isinstance(exc, RemusError):
                log.exception("%s", letter.event)
        with self.lock:
            self.lock.notify_all()
        if letter.done is not None:
            settle(letter.done, error)

    def _do(self, effect: Effect) -> None:
        match effect:
            case SetTimer(timer, seconds):
                self._mailbox.set_timer(timer, seconds)
            case Answer(command, error):
                for waiting in self._commands[command].copy():
                    settle(waiting, error)
            case _:
                self._perform(effect)


def settle(waiting: Future[None], error: Exception | None) -> None:
    """Let who waits go on, or have the error; once."""
    if waiting.done():
        return
    if error is None:
        waiting.set_result(None)
    else:
        waiting.set_exception(error)
