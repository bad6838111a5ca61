# SPDX-License-Identifier: Apache-2.0
"""`remusdb forget`: an operator's word that a VM's owner, as this backup knows it, is its owner no more.

Nothing is deleted: what is in the VM's images folder is moved aside in it. The term stays, for terms only grow.
Invariant: a VM that this host runs or defines, and the only copy of one, are not forgotten without a clear word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from shlex import quote

import libvirt

from remusdb.control.api import Forgotten
from remusdb.core.standby import StandbyState
from remusdb.errors import RefusedForSafety
from remusdb.names import file_stem
from remusdb.state import NOBODYS, VmState
from remusdb.vm.blocking import BlockingCalls
from remusdb.vm.domain import connect
from remusdb_agents.backup.replica import Replica

log = logging.getLogger(__name__)

CALL_S = 5.0
OURS = (".raw", ".fd")  # what a session leaves in the images folder


def forget(replica: Replica, *, lose_replica: bool, there: Callable[[str, str], bool] | None = None) -> Forgotten:
    """Let any listed host protect a VM of this name, with any UUID, to here. RefusedForSafety where that is not safe.

    `lose_replica`: the operator's word that a whole replica, whose primary is not connected, is not needed. `there`:
    whether libvirt (its URI) has a domain of this name.
    """
    vm, config = replica.vm, replica.context.config.agent
    with replica.greeting:
        replica.refresh()
        _require_free(replica, lose_replica)
        reason = "an operator had it forgotten"
        if replica.machine is not None:
            replica.give_up(reason)
            _require_free(replica, lose_replica)
        if (there or _there)(config.libvirt_uri, vm):
            raise RefusedForSafety(
                f"libvirt has a domain {vm} on {replica.context.name}: it may be the VM itself",
                hint=f"see what it is: virsh dominfo {quote(vm)}; if it is not needed: virsh destroy, virsh undefine",
            )
        kept = list(replica.state.kept.values())
        moved = _set_aside(config.image_dir / file_stem(vm), replica.state.term)
        replica.save("none", reason, put_away=False, **NOBODYS)
        replica.refresh()
    log.warning("%s: %s", vm, reason)
    replica.tell("renounced", "empty", reason, by="operator")
    return Forgotten(vm=vm, kept=kept, moved=[str(path) for path in moved])


def _require_free(replica: Replica, lose_replica: bool) -> None:
    state, vm, here = replica.state, replica.vm, replica.context.name
    if replica.stream is not None:
        raise RefusedForSafety(
            f"host {state.peer} protects VM {vm} to here now", hint=f"on {state.peer}: remusdb unprotect {quote(vm)}"
        )
    if replica.takeover.busy or replica.core.state is StandbyState.DECIDING or state.role == "promoting":
        raise RefusedForSafety(f"{here} is taking VM {vm} over", hint=f"see: remusdb status {quote(vm)}")
    if (problem := _held(state)) is not None:
        raise RefusedForSafety(
            f"VM {vm}: {problem}", hint=f"see: remusdb status {quote(vm)}; then: remusdb unprotect {quote(vm)}"
        )
    if replica.core.state is StandbyState.READY and not lose_replica:
        raise RefusedForSafety(
            f"{here} holds a whole replica of VM {vm}, and host {state.peer} is not heard: it may be the only copy",
            hint=f"to run it here: remusdb failover {quote(vm)}; if it is not needed: --lose-the-replica",
        )


def _held(state: VmState) -> str | None:
    """Why its role here forbids it. A promoted VM is libvirt's to tell: it may have been moved away since."""
    if state.role in ("seeding", "protected", "solo"):
        return "this host protects it, or did and has not ended that"
    if state.role == "fenced" and not state.put_away:
        return f"host {state.owner} owns it, and what this host ran is not put away yet"
    return None


def _there(libvirt_uri: str, vm: str) -> bool:
    """Whether libvirt has a domain of this name, running or not. VmError when it does not say."""
    calls = BlockingCalls(CALL_S)
    try:
        connection = connect(libvirt_uri, calls)
        return bool(calls.call(f"VM {vm}", _has, connection, vm))
    finally:
        calls.close()


def _has(connection: libvirt.virConnect, vm: str) -> bool:
    return any(domain.name() == vm for domain in connection.listAllDomains())


def _set_aside(folder: Path, term: int) -> list[Path]:
    """Move images out of the next session's way."""
    found = [path for path in folder.iterdir() if path.is_file() and path.suffix in OURS] if folder.is_dir() else []
    aside = folder / f"forgotten-term{term}"
    moved = []
    for path in found:
        aside.mkdir(mode=0o700, exist_ok=True)
        moved.append(path.rename(aside / path.name))
    return moved
