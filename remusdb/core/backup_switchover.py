# SPDX-License-Identifier: Apache-2.0
"""A switchover that the primary asks for: it stopped its VM, and goes on itself unless this side takes it over.

Invariant: whoever asks hears what came of it; there is one thread for it, however often it is asked.
"""

from __future__ import annotations

from remusdb.core.backup_effects import Decline, Try
from remusdb.core.backup_events import Declined, SwitchoverAsked
from remusdb.core.backup_state import Effects, State
from remusdb.errors import RemusError
from remusdb.reasons import Code, Reason


def switchover_asked(my: State, event: SwitchoverAsked) -> Effects:
    """There is one thread for it: who asks again meanwhile gets the same answer."""
    if event.line != my.line:
        return
    first, my.asker = my.asker is None, event.line
    my.asked_times += 1
    if first:
        try:
            yield Try(Reason.of(Code.SWITCHOVER_ASKED, why=event.reason))
        except RemusError as exc:
            yield from decline(my, str(exc))


def declined(my: State, event: Declined) -> Effects:
    """The primary was told; if it asked again meanwhile, it is told again."""
    if event.serial == my.asked_times:
        my.asker = None
    else:
        yield from decline(my, event.why)


def decline(my: State, why: str) -> Effects:
    """Tell whoever asked last, if anybody waits for an answer."""
    if my.asker is not None:
        yield Decline(my.asker, my.asked_times, my.session_term, why)
