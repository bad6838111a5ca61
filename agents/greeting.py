# SPDX-License-Identifier: Apache-2.0
"""Whether a HELLO is looked at by the protocol at all: what speaks against it before terms are compared.

Invariant: a host that ran the VM before, and was superseded, has put its own VM away before it keeps a replica.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remusdb.core.messages import Hello, Refuse
from remusdb.errors import PeerUnreachable, RemusError
from remusdb.state import OWNING
from remusdb.transport.stream import FrameStream

if TYPE_CHECKING:
    from remusdb_agents.replica import Replica


def refusal(replica: Replica, stream: FrameStream, hello: Hello) -> Refuse | None:
    """Why this HELLO is not served here and now, or None."""
    return _undecided(replica) or _strange(replica, stream, hello) or _superseded(replica, hello)


def _undecided(replica: Replica) -> Refuse | None:
    """While a takeover is under way nobody is fenced for it: it may yet fail."""
    if not replica.takeover.under_way.is_set():
        return None
    return Refuse("this host is taking the VM over", term=replica.core.term, code="deciding")


def _strange(replica: Replica, stream: FrameStream, hello: Hello) -> Refuse | None:
    """A primary that is not who it says, or a second one while the first is connected."""
    if hello.primary != stream.peer_name:
        return Refuse(reason=f"host {hello.primary} shows the certificate of {stream.peer_name}", code="preflight")
    if replica.stream is not None and hello.primary != replica.state.peer:
        return Refuse(reason=f"VM {replica.vm} is being protected by host {replica.state.peer}", code="preflight")
    if hello.resume:
        return None  # the session was agreed on already
    try:
        mine = replica.context.cluster()
    except PeerUnreachable as exc:
        return Refuse(reason=f"{exc}", hint="bring the arbiter back")
    if mine != hello.arbiter:
        return Refuse(
            reason="the two hosts do not use the same arbiter: one would go on alone while the other takes over",
            hint="give host.toml and agent.toml of both hosts the same [arbiter], or none",
            code="preflight",
        )
    return None


def _superseded(replica: Replica, hello: Hello) -> Refuse | None:
    """This host ran the VM, and a host with a newer term protects it to here: the old one is put away first."""
    state = replica.state
    unfinished = state.role == "fenced" and not state.put_away
    if hello.resume or not (unfinished or (state.role in OWNING and hello.term > state.term)):
        return None
    try:
        replica.context.yield_vm(replica.vm, hello.primary, hello.term)
    except RemusError as exc:
        return Refuse(f"the VM that this host ran before is not put away: {exc}", exc.hint, term=state.term)
    replica.refresh()
    return None
