# SPDX-License-Identifier: Apache-2.0
"""Whether a session may begin: what the agent and the arbiter say of its term, and who owns the VM.

A session begins only in a term that one word may take this host to (`terms.py`), and only once the arbiter, where there
is one, knows it. What may be learned is learned (`learned`) also where it may not begin: whoever tries again is nearer.
"""

from __future__ import annotations

from dataclasses import dataclass

from remusdb.core.ownership import Claim, Verdict
from remusdb.core.terms import reached, too_far
from remusdb.errors import PeerRefused

AGAIN = "protect it again: each try goes a part of the way; was a host restored from an old backup?"


@dataclass(frozen=True)
class Refused:
    """Why it does not begin. `learned`: a term to make durable first, 0 for none."""

    error: PeerRefused
    learned: int = 0


def judge_welcome(known: int, term: int, agent: str) -> Refused | None:
    """`agent` welcomes a session of `term`; this host knows of term `known`."""
    if not too_far(known, term):
        return None
    error = PeerRefused(f"agent {agent} is in term {term}, this host in {known}", hint=AGAIN)
    return Refused(error, reached(known, term))


def judge_claim(known: int, claim: Claim, host: str, vm: str, key: str) -> Refused | None:
    """The arbiter's answer, WON or LOST, to the claim of `host` for a session. `key`: of the record, in etcd.

    A record of another host fences nobody: a claim may have been won and never followed up. That host's agent is the
    one to say that it runs the VM.
    """
    if claim.verdict is Verdict.WON:
        return None
    record = claim.record
    if record is not None and host in (record.owner, record.owner or record.previous):
        error = PeerRefused(f"the arbiter says that this host is in term {record.term} already", hint=AGAIN)
        return Refused(error, reached(known, record.term))
    owner, newer = (record.owner, record.term) if record else ("nobody", 0)
    error = PeerRefused(
        f"the arbiter says that {owner or 'nobody'} has owned VM {vm} since term {newer}",
        hint=f"see `remusdb status` there; if it was moved by hand, delete its key in etcd: {key}",
    )
    return Refused(error)
