# SPDX-License-Identifier: Apache-2.0
"""What is to be done for a VM without anybody asking: pure decisions from its state file and its worker.

Nobody has to press a button for a VM to be safe: a host that comes back learns who owns its VMs, an old primary is put
away, a VM that lost its backup gets it back.
"""

from __future__ import annotations

from enum import Enum

from remusdb.core.messages import Standing
from remusdb.core.ownership import Ownership
from remusdb.core.roles import PROMOTED
from remusdb.state import VmState


class Action(Enum):
    """The next step for one VM."""

    NOTHING = "nothing"
    QUARANTINE = "quarantine"  # another host owns it: destroy it here
    REJOIN = "rejoin"  # output may be held: ask who owns it, then protect it again
    RESYNC = "resync"  # it runs alone: ask who owns it, then protect it again
    REPROTECT = "reprotect"  # it was taken over here: protect it back


def next_action(state: VmState, working: bool, auto_reprotect: bool) -> Action:
    """What to do now. `working`: a worker, or an unprotect, has the VM in hand."""
    if state.role == "fenced":
        return Action.NOTHING if state.quarantined else Action.QUARANTINE
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
    """Who else owns the VM, in a newer term than this host knows, so that what is here is to be quarantined; or None.

    Two words count: that of the host which has it, and the arbiter's record. Its record of the very next term may be a
    takeover that was never followed up, and is given back then; a later one stands for a session that was begun since.
    The VM of a host that is not armed cannot have been taken over: what its peer says then is of another VM.
    """
    if record is not None and record.owner not in ("", host) and record.term > state.term + 1:
        return record
    if state.armed and standing is not None and says_it_is_there(standing, state.peer, state):
        return Ownership(standing.owner, standing.term) if standing.term > state.term else None
    return None


def says_it_is_there(standing: Standing, by: str, state: VmState) -> bool:
    """Whether host `by`, whose word it is, says that it owns this VM itself."""
    return standing.owner == by and not _another_vm(state, standing)


def hearsay(host: str, state: VmState, standing: Standing | None) -> str:
    """The host that the peer names as owner, being neither of the two: it is to be asked itself. Empty: none."""
    if standing is None or _another_vm(state, standing) or standing.term <= state.term:
        return ""
    return "" if standing.owner in ("", host, state.peer) else standing.owner


def disputed(state: VmState, standing: Standing) -> bool:
    """Whether the peer says that it owns the VM, not in an older term, and yet this host was not superseded."""
    return says_it_is_there(standing, state.peer, state) and standing.term >= state.term


def _another_vm(state: VmState, standing: Standing) -> bool:
    return bool(standing.uuid and state.uuid and standing.uuid != state.uuid)
