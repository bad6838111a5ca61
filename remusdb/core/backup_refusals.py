# SPDX-License-Identifier: Apache-2.0
"""What speaks against a HELLO, in words that say what to do. Nothing is changed here."""

from __future__ import annotations

from shlex import quote

from remusdb.core.backup_events import Hailed, LookedUp
from remusdb.core.backup_state import State
from remusdb.core.messages import Hello, Refuse
from remusdb.core.ownership import Ownership
from remusdb.core.roles import OWNING
from remusdb.core.standby import Phase
from remusdb.core.succession import Known
from remusdb.errors import RemusError


def known(my: State) -> Known:
    """What this host knows of the VM, for the rule of succession."""
    durable = my.durable
    owns = durable.role in OWNING
    return Known(
        host=my.host,
        term=my.standby.term,
        owner=my.standby.owner or durable.owner,
        peer=durable.peer,
        owns=owns,
        ran=owns and my.standby.phase not in (Phase.PROMOTING, Phase.UNSETTLED),
        armed=durable.armed,
    )


def at_the_door(my: State, event: Hailed) -> Refuse | None:
    """What speaks against this HELLO before anybody is asked."""
    hello, durable = event.hello, my.durable
    if my.standby.phase.takes_over:
        return Refuse("this host is taking the VM over", term=my.standby.term, code="deciding")
    if hello.primary != event.peer:
        hint = "name in [host] of its host.toml must be the name in its certificate"
        return Refuse(f"host {hello.primary} shows the certificate of {event.peer}", hint, code="preflight")
    if my.line is not None and hello.primary != durable.peer:
        hint = "two VMs of one name cannot have the same backup: choose another, or rename one: virsh domrename"
        return Refuse(f"VM {my.vm} is being protected by host {durable.peer}", hint, code="preflight")
    if durable.uuid and durable.uuid != hello.uuid:
        hint = f"if the old one is not needed any more, on {my.host}: remusdb forget {quote(my.vm)}"
        reason = f"{my.host} knows VM {my.vm} with UUID {durable.uuid}, not {hello.uuid}"
        return Refuse(reason, hint, code="preflight")
    return None


def looked_up_in_vain(my: State, event: LookedUp) -> Refuse | None:
    """What was found out against a new session. A VM is its name and its UUID: what is here under one of them alone is
    another VM's."""
    if event.others:
        return _same_uuid(my, event)
    if event.away:
        return Refuse(reason=f"the arbiter does not answer: {event.away}", hint="bring the arbiter back")
    if event.arbiter != event.hailed.hello.arbiter:
        return Refuse(
            reason="the two hosts do not use the same arbiter: one would go on alone while the other takes over",
            hint="give host.toml and agent.toml of both hosts the same [arbiter], or none",
            code="preflight",
        )
    return None


def _same_uuid(my: State, event: LookedUp) -> Refuse:
    other, uuid = event.others[0], event.hailed.hello.uuid
    hint = f"if that one is not needed any more, on {my.host}: remusdb forget {quote(other)}"
    return Refuse(f"{my.host} knows UUID {uuid} as that of VM {other}", hint, code="preflight")


def stranger(my: State, hello: Hello, record: Ownership | None) -> Refuse:
    """Another host owns the VM, or did: a HELLO changes nothing of that."""
    if record is not None:
        owner = record.owner or f"nobody (before: {record.previous})"
        why = f"the arbiter says that {owner} has owned VM {my.vm} since term {record.term}, not {hello.primary}"
        hint = f"if the VM was moved by hand, delete its key in etcd: {my.prefix}{my.vm}"
        return Refuse(why, hint, code="preflight")
    mine = known(my)
    owner = "this host itself" if mine.owner == my.host else f"host {mine.owner}"
    return Refuse(
        f"as far as {my.host} knows, {owner} owns VM {my.vm} (term {mine.term}), not {hello.primary}",
        f"if you are sure that {hello.primary} has it and it runs nowhere else, on {my.host}: "
        f"remusdb forget {quote(my.vm)}",
        code="preflight",
    )


def preflight(exc: RemusError) -> Refuse:
    """This host, or this VM, does not do."""
    return Refuse(str(exc), exc.hint, code="preflight")
