# SPDX-License-Identifier: Apache-2.0
"""Whether the arbiter would take a change now, asked before anybody needs one.

An etcd without space answers every read, and one without quorum its status: neither lets a session begin or a takeover
be decided. So the question is a change that is never made: a transaction whose comparison cannot hold. etcd measures it
against its quota and sends it through its quorum as any other, and writes nothing: the revision stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remusdb.arbiter.answers import Status

NO_SPACE, CORRUPT = "alarm:NOSPACE", "alarm:CORRUPT"  # as a member's status writes its alarms


@dataclass(frozen=True)
class Health:
    """`problem`: why no change would be made, empty if one would. `weak`: the members that do not help."""

    problem: str = ""
    hint: str = ""
    weak: tuple[str, ...] = ()


def judge(members: Mapping[str, Status | str], refusal: str, control: str) -> Health:
    """What it means that a change was refused (`refusal`, empty if it was not) and that the members say this of
    themselves: URL -> status, or why there is none. `control`: the start of an `etcdctl` command line for hints."""
    said = {url: answer for url, answer in members.items() if not isinstance(answer, str)}
    weak = tuple(f"{url}: {why}" for url, answer in members.items() if (why := _weakness(answer)))
    return replace(_judge(said, len(members), refusal, control) if refusal else Health(), weak=weak)


def _judge(said: Mapping[str, Status], members: int, refusal: str, control: str) -> Health:
    alarms = " ".join(error for answer in said.values() for error in answer.errors)
    if NO_SPACE in alarms or "space exceeded" in refusal:
        revision = max((int(answer.header.revision) for answer in said.values()), default=0)
        return Health("etcd has used up its space and accepts no change", _make_room(control, revision))
    if CORRUPT in alarms:
        return Health("etcd's members have different data (alarm CORRUPT), and accept no change", _REPLACE)
    if said and not any(answer.leader for answer in said.values()):
        told = f"etcd has no quorum: {len(said)} of {members} endpoints answer, and have no leader"
        return Health(told, "start etcd's other members, or see why they do not reach each other")
    return Health(refusal, "see whether etcd runs and is reached from here")


_REPLACE = "find the member that differs and replace it, as etcd's documentation says under data corruption"


def _weakness(answer: Status | str) -> str:
    if isinstance(answer, str):
        return answer
    return "" if answer.leader else "has no leader"


def _make_room(control: str, revision: int) -> str:
    return (
        f"{control} compact {revision or 'REVISION'}; {control} --command-timeout=60s defrag; {control} alarm disarm; "
        "if it is full again then, start etcd with a larger --quota-backend-bytes"
    )
