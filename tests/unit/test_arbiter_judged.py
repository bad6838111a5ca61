# SPDX-License-Identifier: Apache-2.0
"""What an arbiter's refusal means, by what its members say of themselves."""

from __future__ import annotations

import msgspec
import pytest

from remusdb.arbiter.answers import Status
from remusdb.arbiter.health import judge

ONE, TWO = "http://10.0.0.1:2379", "http://10.0.0.2:2379"


def status(*errors: str, leader: str = "7", revision: str = "41") -> Status:
    said = {"header": {"cluster_id": "1", "revision": revision}, "leader": leader, "errors": errors}
    return msgspec.json.decode(msgspec.json.encode(said), type=Status)


@pytest.mark.parametrize(
    ("members", "refusal", "problem", "hint"),
    [
        ({ONE: status()}, "", "", ""),
        ({ONE: status(leader=""), TWO: status()}, "", "", ""),
        ({ONE: status("memberID:7 alarm:NOSPACE ")}, "HTTP 429", "used up its space", "etcdctl compact 41; "),
        ({ONE: status()}, "mvcc: database space exceeded (HTTP 429)", "used up its space", "quota-backend-bytes"),
        (
            {ONE: "refused"},
            "etcdserver: mvcc: database space exceeded",
            "used up its space",
            "etcdctl compact REVISION; ",
        ),
        ({ONE: status("memberID:7 alarm:CORRUPT ")}, "corrupt", "alarm CORRUPT", "replace"),
        ({ONE: status("no leader", leader=""), TWO: "refused"}, "timeout", "no quorum: 1 of 2", "other members"),
        ({ONE: "refused"}, f"{ONE}: refused", f"{ONE}: refused", "etcd runs"),
        ({ONE: status()}, f"{ONE}: no answer in time", "no answer in time", "etcd runs"),
    ],
)
def test_a_refusal(members: dict[str, Status | str], refusal: str, problem: str, hint: str) -> None:
    health = judge(members, refusal, "etcdctl")
    assert problem in health.problem and hint in health.hint
    assert bool(health.problem) is bool(health.hint) is bool(refusal)


def test_members_that_do_not_help_are_named() -> None:
    health = judge({ONE: status(leader=""), TWO: "refused", "http://10.0.0.3:2379": status()}, "", "etcdctl")
    assert health.weak == (f"{ONE}: has no leader", f"{TWO}: refused")
