# SPDX-License-Identifier: Apache-2.0
"""Whether a HELLO is looked at by the protocol at all: what speaks against it before terms are compared.

Nothing of this host's is changed here but one thing: where this host had the VM before and was superseded, its own is
put away before it keeps a replica. Who may supersede it is `core/succession.py`'s.
"""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from remusdb.core.messages import Hello, Refuse
from remusdb.core.ownership import Ownership
from remusdb.core.succession import Known, Succession, begins, resumes
from remusdb.errors import PeerUnreachable, RemusError
from remusdb.state import OWNING, VmState
from remusdb.transport.stream import FrameStream

if TYPE_CHECKING:
    from remusdb_agents.backup.replica import Replica


def refusal(replica: Replica, stream: FrameStream, hello: Hello) -> Refuse | None:
    """Why this HELLO is not served here and now, or None."""
    refused = _undecided(replica) or _strange(replica, stream, hello) or _another_vm(replica, hello)
    if refused is not None:
        return refused
    if hello.resume:  # the session was agreed on already, and the arbiter may be away
        return _judged(replica, hello, None, resumes(known(replica), hello.primary))
    try:
        refused = _other_arbiter(replica, hello)
        record = _record(replica, hello) if refused is None else None
    except PeerUnreachable as exc:
        return _arbiter_away(exc)
    return refused or _judged(replica, hello, record, begins(known(replica), hello.primary, hello.term, record))


def refusal_at_the_door(replica: Replica, hello: Hello) -> Refuse | None:
    """A stranger's HELLO for a VM that another host owns, or None: the arbiter, which may take long to answer, is asked
    before the replica is locked, or whoever says HELLO again and again would keep its owner from taking its session up.
    """
    state = known(replica)
    if state.owns or state.owner in ("", hello.primary):
        return None
    try:
        record = _record(replica, hello)
    except PeerUnreachable as exc:
        return _arbiter_away(exc)
    found = begins(state, hello.primary, hello.term, record)
    return _stranger(replica, hello, record) if found is Succession.STRANGER else None


def known(replica: Replica) -> Known:
    """What this host knows of the VM, for the rule of succession."""
    state, core = replica.state, replica.core
    return Known(
        host=replica.context.name,
        term=core.term,
        owner=core.owner or state.owner,
        peer=state.peer,
        owns=state.role in OWNING,
        ran=state.role in OWNING and (state.role != "promoting" or replica.runs_here),
        armed=state.armed,
    )


def _record(replica: Replica, hello: Hello) -> Ownership | None:
    arbiter = replica.context.arbiter
    return arbiter.read(hello.vm) if arbiter is not None else None


def _arbiter_away(exc: PeerUnreachable) -> Refuse:
    return Refuse(reason=f"the arbiter does not answer: {exc}", hint="bring the arbiter back")


def _undecided(replica: Replica) -> Refuse | None:
    """While a takeover is under way nobody is fenced for it: it may yet fail."""
    if not replica.takeover.under_way.is_set():
        return None
    return Refuse("this host is taking the VM over", term=replica.core.term, code="deciding")


def _strange(replica: Replica, stream: FrameStream, hello: Hello) -> Refuse | None:
    """A primary that is not who it says, or a second one while the first is connected."""
    if hello.primary != stream.peer_name:
        hint = "name in [host] of its host.toml must be the name in its certificate"
        return Refuse(f"host {hello.primary} shows the certificate of {stream.peer_name}", hint, code="preflight")
    if replica.stream is not None and hello.primary != replica.state.peer:
        hint = "two VMs of one name cannot have the same backup: choose another, or rename one: virsh domrename"
        return Refuse(f"VM {replica.vm} is being protected by host {replica.state.peer}", hint, code="preflight")
    return None


def _another_vm(replica: Replica, hello: Hello) -> Refuse | None:
    """A VM is its name and its UUID: what is here under one of them alone is another VM's."""
    mine, here = replica.state.uuid, replica.context.name
    if mine and mine != hello.uuid:
        hint = f"where the old one is not needed any more, on {here}: remusdb forget {quote(replica.vm)}"
        return Refuse(f"{here} knows VM {replica.vm} with UUID {mine}, not {hello.uuid}", hint, code="preflight")
    others = [vm for vm in replica.context.store.named(hello.uuid) if vm != replica.vm] if not hello.resume else []
    if others:
        hint = f"where that one is not needed any more, on {here}: remusdb forget {quote(others[0])}"
        return Refuse(f"{here} knows UUID {hello.uuid} as that of VM {others[0]}", hint, code="preflight")
    return None


def _other_arbiter(replica: Replica, hello: Hello) -> Refuse | None:
    if replica.context.cluster() == hello.arbiter:
        return None
    return Refuse(
        reason="the two hosts do not use the same arbiter: one would go on alone while the other takes over",
        hint="give host.toml and agent.toml of both hosts the same [arbiter], or none",
        code="preflight",
    )


def _judged(replica: Replica, hello: Hello, record: Ownership | None, found: Succession) -> Refuse | None:
    state, term = replica.state, replica.core.term
    if found is Succession.RUNS_HERE:
        return Refuse("this host runs the VM: it took over", term=term, fenced=True)
    if found is Succession.UNDECIDED:
        return Refuse("this host was taking the VM over", term=term, code="deciding")
    if found is Succession.STRANGER:
        return _stranger(replica, hello, record)
    if not hello.resume and (found is Succession.PUT_AWAY or _unfinished(state)):
        return _yield(replica, hello)
    return None


def _stranger(replica: Replica, hello: Hello, record: Ownership | None) -> Refuse:
    """Another host owns the VM, or did: a HELLO changes nothing of that."""
    here, vm = replica.context.name, replica.vm
    if record is not None:
        owner = record.owner or f"nobody (before: {record.previous})"
        prefix = replica.context.config.arbiter.prefix if replica.context.config.arbiter else ""
        why = f"by the arbiter {owner} owns VM {vm} since term {record.term}, not {hello.primary}"
        return Refuse(why, f"if the VM was moved by hand, delete its key in etcd: {prefix}{vm}", code="preflight")
    mine = known(replica)
    owner = "this host itself" if mine.owner == here else f"host {mine.owner}"
    return Refuse(
        f"as far as {here} knows, {owner} owns VM {vm} (term {mine.term}), not {hello.primary}",
        f"if you are sure that {hello.primary} has it and it runs nowhere else, on {here}: remusdb forget {quote(vm)}",
        code="preflight",
    )


def _unfinished(state: VmState) -> bool:
    """This host was superseded, and what it has of the VM is not put away."""
    return state.role == "fenced" and not state.put_away


def _yield(replica: Replica, hello: Hello) -> Refuse | None:
    try:
        replica.context.yield_vm(replica.vm, hello.primary, hello.term)
    except RemusError as exc:
        return Refuse(f"the VM that this host ran before is not put away: {exc}", exc.hint, term=replica.state.term)
    replica.refresh()
    return None
