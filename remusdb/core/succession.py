# SPDX-License-Identifier: Apache-2.0
"""Whose word makes a host the owner of a VM, as a backup sees it. Pure.

Anybody can say HELLO. A new owner comes only from
  - the owner that is known here: it ended protection by an operator's will, and so nobody is known any more;
  - its peer, which held its epochs and may have taken the VM over: to a host that was protected to there;
  - the arbiter's record, where there is one: it counts more than what this host remembers;
  - an operator, by `remusdb forget`.
Never from a HELLO alone. A host is told that it was superseded only by one that took the VM over and ran it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from remusdb.core.ownership import Ownership


@dataclass(frozen=True)
class Known:
    """What this host durably knows of the VM.

    `owner` owned it in `term`, empty: nobody that is known. `peer`: the other host of the pair. `owns`: this host may
    let it speak; `ran`: and it does run here, or did. `armed`: `peer` may have taken it over since.
    """

    host: str
    term: int = 0
    owner: str = ""
    peer: str = ""
    owns: bool = False
    ran: bool = False
    armed: bool = False


class Succession(Enum):
    """What a HELLO that wants to begin, or to resume, a session is to be told."""

    SERVE = "serve"
    QUARANTINE = "quarantine"  # what this host has of the VM is superseded; once it is quarantined: serve
    RUNS_HERE = "runs here"  # the asking host was superseded
    UNDECIDED = "undecided"  # this host took it over, and it does not run yet
    STRANGER = "stranger"  # another host owns it, or did


def begins(known: Known, primary: str, term: int, record: Ownership | None) -> Succession:
    """Host `primary`, which knows `term`, wants to protect the VM to here.

    `record`: the arbiter's, None where there is no arbiter or no record.
    """
    named = "" if record is None else record.owner or record.previous
    if known.owns:
        newer = (record.term if record is not None else term) > known.term
        entitled = named == primary if record is not None else known.armed and known.peer == primary
        if newer and entitled:
            return Succession.QUARANTINE
        return Succession.RUNS_HERE if known.ran else Succession.UNDECIDED
    if record is not None and named == primary:
        return Succession.QUARANTINE if known.owner == known.host else Succession.SERVE
    if record is not None:
        return Succession.STRANGER
    return Succession.SERVE if known.owner in ("", primary) else Succession.STRANGER


def resumes(known: Known, primary: str) -> Succession:
    """Host `primary` wants to go on with a session that it says it had here. Nobody is asked: it must be fast.

    A stranger gets no word at all: `renounced` would free a host that was superseded.
    """
    if known.owns:
        return Succession.RUNS_HERE if known.ran else Succession.UNDECIDED
    return Succession.SERVE if known.owner in ("", primary) else Succession.STRANGER
