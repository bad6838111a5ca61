# SPDX-License-Identifier: Apache-2.0
"""What is to be done for a VM without anybody asking: pure decisions from its state file and its worker.

Nobody has to press a button for a VM to be safe: a host that comes back learns who owns its VMs, an old primary is put
away, a VM that lost its backup gets it back.
"""

from __future__ import annotations

from enum import Enum

from remusdb.core.messages import Standing
from remusdb.core.ownership import Ownership
from remusdb.state import PROMOTED, VmState


class Action(Enum):
    """The next step for one VM."""

    NOTHING = "nothing"
    PUT_AWAY = "put away"  # another host owns it: destroy it here
    REJOIN = "rejoin"  # output may be held: ask who owns it, then protect it again
    RESYNC = "resync"  # it runs alone: ask who owns it, then protect it again
    REPROTECT = "reprotect"  # it was taken over here: protect it back


def next_action(state: VmState, working: bool, auto_reprotect: bool) -> Action:
    """What to do now. `working`: a worker, or an unprotect, has the VM in hand."""
    if state.role == "fenced":
        return Action.NOTHING if state.put_away else Action.PUT_AWAY
    if working:
        return Action.NOTHING
    if state.role == "protected":
        return Action.REJOIN
    if state.role in ("solo", "seeding") and state.wanted:
        return Action.RESYNC
    if state.role in PROMOTED and auto_reprotect and state.resumed_at_ns is not None:
        return Action.REPROTECT
    return Action.NOTHING


def superseded(host: str, state: VmState, standing: Standing | None, record: Ownership | None) -> Ownership | None:
    """Who else owns the VM, in a newer term than this host knows, by the peer's word or the arbiter's; or None.

    The arbiter's record of the very next term may be a takeover that was never followed up, and is given back then:
    only the peer's word counts. A later one stands for a session that was begun since.
    """
    if record is not None and record.owner not in ("", host) and record.term > state.term + 1:
        return record
    if standing is not None and standing.owner not in ("", host) and standing.term > state.term:
        return Ownership(standing.owner, standing.term)
    return None
