# SPDX-License-Identifier: Apache-2.0
"""No number that a peer sends makes a VM unprotectable, or the agent fall over."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from remusdb.core.messages import Welcome
from remusdb.core.wire import FrameType
from remusdb.errors import RemusError
from tests.hostile.rig import Rig, eventually
from tests.hostile.sayings import frame, hello, honest, packed

BORDERS = [
    (1 << 64) - 1,
    (1 << 64) - 2,
    1 << 63,
    (1 << 63) - 1,
    (1 << 62) + 1,
    1 << 62,
    (1 << 62) - 1,
    (1 << 53) + 1,
    1 << 53,
    -1,
    -(1 << 31),
    -(1 << 63),
    1.5,
    1e300,
    float("nan"),
    float("inf"),
    True,
    "7",
    b"7",
    [7],
    {},
    None,
]


def still_protectable(rig: Rig, vm: str) -> None:
    """gamma protects the VM, twice, asks about it, and its term is one that there is room after."""
    for _ in range(2):
        caller, welcome = rig.welcomed(honest(vm, "gamma"), "gamma")
        assert 0 < welcome.term < 1 << 61, f"term {welcome.term}"
        caller.commit(welcome.term, 1)
        assert caller.hear(FrameType.ACK) is not None
        caller.say(FrameType.BYE, packed({"reason": "done", "forget": True}), welcome.term)
        assert caller.hear(FrameType.RENOUNCE) is not None
        caller.close()
    told = rig.ask(vm, "gamma")
    assert told is not None and 0 < told.term < 1 << 61


@pytest.mark.parametrize("resume", [False, True])
def test_no_term_makes_a_vm_unprotectable(rig: Rig, resume: bool) -> None:
    rig.start(made_up=True)
    for term in BORDERS:
        rig.hello(hello("pg", "gamma", term=term, resume=resume), "gamma")[0].close()
    still_protectable(rig, "pg")
    rig.stop()
    rig.start(made_up=True)
    still_protectable(rig, "pg")
    assert "Traceback" not in rig.told()


def test_the_highest_term_that_is_taken_again_and_again(rig: Rig) -> None:
    """Whatever jump is allowed, some of them do not use the terms up."""
    rig.start(made_up=True)
    for _ in range(10):
        known = rig.known("pg").term
        for jump in (61, 40, 24, 10):
            caller, answer = rig.hello(hello("pg", "gamma", term=known + (1 << jump)), "gamma")
            caller.close()
            if isinstance(answer, Welcome):
                break
    still_protectable(rig, "pg")


def test_terms_and_epochs_of_frames(rig: Rig) -> None:
    """In a session of gamma's own: frames of any term and epoch end it at most; what was committed stays."""
    rig.start(made_up=True)
    numbers = [number for number in BORDERS if isinstance(number, int) and number >= 0]
    with rig.unchanged(files=False):
        for kind in (FrameType.COMMIT, FrameType.BYE, FrameType.TAKEOVER):
            for number in numbers if kind is FrameType.COMMIT else numbers[:2]:
                caller, welcome = rig.welcomed(honest("pg", "gamma"), "gamma")
                with contextlib.suppress(RemusError):
                    payload = packed({"frames": 0, "payload_bytes": 0, "addresses": []})
                    caller.link.write([frame(kind, number, 1, payload), frame(kind, welcome.term, number, payload)])
                caller.close()
    assert rig.known("pg").role in ("standby", "none")
    still_protectable(rig, "pg")
    assert "Traceback" not in rig.told()


COMMITS: list[dict[str, Any]] = [
    *({"frames": number} for number in BORDERS),
    *({"payload_bytes": number} for number in BORDERS[:3]),
    *({"age_ns": number} for number in BORDERS[:12]),
    {"addresses": ["10.0.0.1"] * 300_000},
    {"addresses": ["a" * 3_000_000]},
    {"addresses": ["10.0.0.1\n", "'; reboot", "../x", "\x1b[31m"]},
    {"addresses": [1, 2]},
    {"stays": 7},
]


def test_what_a_commit_says(rig: Rig) -> None:
    rig.start(made_up=True)
    with rig.unchanged(files=False):
        for changes in COMMITS:
            caller, welcome = rig.welcomed(honest("pg", "gamma"), "gamma")
            payload = packed({"frames": 0, "payload_bytes": 0, "addresses": [], **changes})
            with contextlib.suppress(RemusError):
                caller.say(FrameType.COMMIT, payload, welcome.term, 1)
                caller.hear(FrameType.ACK, FrameType.RENOUNCE, within_s=0.3)
            caller.close()
    assert "Traceback" not in rig.told()
    still_protectable(rig, "pg")
    eventually(rig.serves, "the agent is deaf")
